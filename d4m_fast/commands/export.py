"""`d4m-fast export`: the networks to ONNX and TensorRT, compared with PyTorch and certified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d4m_fast.config.export import ExportConfig
from d4m_fast.config.fields import Group
from d4m_fast.console import exported_lines, lines_of, now_and_then, say_result, say_weights, track
from d4m_fast.options import PATH, command, config_of, option, options_of


@command
@options_of(ExportConfig)
@option("--artifacts", group=Group.OUTPUT, type=PATH, help="Where exports are kept.  [default: user cache]")
@option("--certify", "certify_only", group=Group.EVERYDAY, is_flag=True, help="Compare what is there, on this device.")
@option(
    *("--list", "list_only"),
    group=Group.EVERYDAY,
    is_flag=True,
    help="Show what was exported, and its status, instead.",
)
def export(
    artifacts: Path | None,
    certify_only: bool,
    list_only: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Export the four networks to ONNX and TensorRT, compare them with PyTorch on real images, write a certificate.

    Exits non-zero when they are not near enough; the files then stay under a name that ends in .rejected. What is
    exported already is left as it is. What cannot run here (fp16 on a CPU, engines built ahead of time) is compared by
    its ONNX files and stays unverified, and unused, until --certify on its GPU.

    \b
    Examples:
      d4m-fast export
      d4m-fast export --model stable-diffusion-v1-5 --data imagenet/train --engine tensorrt --precision fp16
      d4m-fast export --engine tensorrt --precision fp16 --target sm80,sm89
      d4m-fast export --list
    """
    from d4m_fast.engine.artifacts import catalogue
    from d4m_fast.job import default_artifacts

    cache = default_artifacts() if artifacts is None else artifacts
    if list_only:
        from d4m_fast.export.listing import listing, table

        rows = listing(catalogue(cache))
        say_result(
            {"artifacts": rows}, as_json, lambda: lines_of(table(rows)) if rows else [f"nothing exported in {cache}"]
        )
        return
    certificate = _export(config_of(ExportConfig, options), cache, certify_only, quiet)
    say_result(certificate, as_json, lambda: exported_lines(certificate))


def _export(config: ExportConfig, cache: Path, certify_only: bool, quiet: bool) -> dict[str, Any]:
    """Export and compare what is not yet; returns the certificate and where it lies."""
    from d4m_fast.export.export import certify
    from d4m_fast.export.export import export as run
    from d4m_fast.export.job import exported, prepare_export
    from d4m_fast.runs.exports import CERTIFICATE_FILE
    from d4m_fast.storage.state import CERTIFICATE, require_state

    job = prepare_export(config, cache)
    say_weights(job.model.weights_line, quiet)
    if certify_only or exported(job) is None:
        steps = certify(job) if certify_only else run(job, now_and_then(quiet))
        for _ in track("export", steps, quiet):
            pass
    return {"path": str(job.path), **require_state(job.path / CERTIFICATE_FILE, CERTIFICATE)}
