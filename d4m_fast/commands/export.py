"""`d4m-fast export`: the networks to ONNX and TensorRT, compared with PyTorch and certified."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from d4m_fast.config import ExportConfig, ExportedEngine
from d4m_fast.console import exported_lines, lines_of, now_and_then, say_result, say_weights, track
from d4m_fast.options import BATCH, THREADS, shared


@click.command()
@click.option("--model", default=ExportConfig.model, show_default=True, help="'bundled', a directory, or a hub id.")
@click.option("--revision", help="Commit, tag or branch of a model from the hub.  [default: main]")
@click.option("--data", default=ExportConfig.data, show_default=True, help="Real images to compare engines on.")
@click.option("--artifacts", type=click.Path(path_type=Path), help="Where exports are kept.  [default: user cache]")
@click.option("--engine", type=click.Choice(get_args(ExportedEngine)), default=ExportConfig.engine, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--target", help="Build engines ahead of time, for these: sm80,sm89.  [default: the GPU here]")
@click.option("--resolution", type=click.IntRange(min=1), help="Side of the images.  [default: the model's]")
@click.option("--static-batch", type=BATCH, help="Images per call, fixed.  [default: any number]")
@click.option("--max-batch", type=BATCH, default=50, show_default=True, help="Images an engine takes.")
@click.option("--level", type=click.IntRange(0, 5), default=3, show_default=True, help="Of TensorRT's builder.")
@click.option("--images", type=click.IntRange(min=1), default=32, show_default=True, help="To compare engines on.")
@click.option("--device", default="auto", show_default=True, help="Where to compare: auto, cpu, cuda or cuda:1.")
@click.option("--threads", type=THREADS, help="CPU threads.  [default: one per core]")
@click.option("--certify", "certify_only", is_flag=True, help="Compare what is there, on this device.")
@click.option("--list", "list_only", is_flag=True, help="Show what was exported, and its status, instead.")
@shared
def export(
    artifacts: Path | None,
    threads: int | None,
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
    certificate = _export(options, threads, cache, certify_only, quiet)
    say_result(certificate, as_json, lambda: exported_lines(certificate))


def _export(
    options: dict[str, Any], threads: int | None, cache: Path, certify_only: bool, quiet: bool
) -> dict[str, Any]:
    """Export and compare what is not yet; returns the certificate and where it lies."""
    import torch

    from d4m_fast.export.export import certify
    from d4m_fast.export.export import export as run
    from d4m_fast.export.job import exported, prepare_export
    from d4m_fast.runs.exports import CERTIFICATE_FILE
    from d4m_fast.storage.state import CERTIFICATE, require_state

    config = ExportConfig(**options, threads=torch.get_num_threads() if threads is None else threads)
    job = prepare_export(config, cache)
    say_weights(job.model.weights_line, quiet)
    if certify_only or exported(job) is None:
        steps = certify(job) if certify_only else run(job, now_and_then(quiet))
        for _ in track("export", steps, quiet):
            pass
    return {"path": str(job.path), **require_state(job.path / CERTIFICATE_FILE, CERTIFICATE)}
