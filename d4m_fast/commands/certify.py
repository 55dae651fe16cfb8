"""`d4m-fast certify`: what this machine's engines compute, and how fast, checked against the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d4m_fast.config.certify import CertifyConfig
from d4m_fast.config.fields import Group
from d4m_fast.console import now_and_then, say_lines, say_result, say_weights, track
from d4m_fast.errors import require
from d4m_fast.options import PATH, command, config_of, option, options_of

if TYPE_CHECKING:
    from d4m_fast.certification.request import Request
    from d4m_fast.certification.step import Step

FAILED = 1


@command
@options_of(CertifyConfig)
@option("--artifacts", group=Group.OUTPUT, type=PATH, help="Where exports are kept.  [default: user cache]")
@option("--out", group=Group.EVERYDAY, type=PATH, default=Path("certify"), show_default=True, help="Results.")
@option("--steps", group=Group.EVERYDAY, help="Only these: 'parity', or 'export-onnx-fp32,speed-onnx'.  [default: all]")
@option(
    *("--list", "list_only"),
    group=Group.OUTPUT,
    is_flag=True,
    help="Show the steps and which of them are done, instead.",
)
@option("--render", group=Group.OUTPUT, type=PATH, help="Print a certify.json as Markdown, instead.")
@option("--into", group=Group.OUTPUT, type=PATH, help="With --render: write it between this file's markers.")
def certify(
    artifacts: Path | None,
    out: Path,
    steps: str | None,
    list_only: bool,
    render: Path | None,
    into: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Check and time every engine that runs on this machine, without network, in steps of minutes.

    Each engine and precision is compared with fp32 PyTorch on the CPU; each of its stages is timed at several batches,
    and at the best of them for a minute, with how busy the device was, and a GPU's clocks and power. A re-run skips
    what is done and repeats what failed. Exits 1 when a check failed; certify.json in --out says which.

    \b
    Examples:
      d4m-fast certify
      d4m-fast certify --steps parity,speed-torch --seconds 5
      d4m-fast certify --model stable-diffusion-v1-5 --data imagenet/train --out certify-sd15
      d4m-fast certify --render certify/certify.json --into docs/certify.md
    """
    if render is not None:
        _render(render, into)
        return
    from d4m_fast.certification.request import prepare_certification
    from d4m_fast.certification.step import choose
    from d4m_fast.certification.steps import all_steps
    from d4m_fast.job import default_artifacts

    require(into is None, "--into is for --render")
    config = config_of(CertifyConfig, options)
    request = prepare_certification(config, default_artifacts() if artifacts is None else artifacts, out)
    say_weights(request.model.weights_line, quiet)
    known, missing = all_steps(request, now_and_then(quiet))
    chosen = choose(known, steps)
    if list_only:
        rows = _rows(request, known, missing)
        say_result({"steps": rows}, as_json, lambda: [f"{name}: {state}" for name, state in rows.items()])
        return
    value = _certify(request, known, chosen, missing, quiet)
    say_result(value, as_json, lambda: _lines(value, out))
    if not value["passed"]:
        sys.exit(FAILED)


def _certify(
    request: Request, known: list[Step], chosen: list[Step], missing: dict[str, str], quiet: bool
) -> dict[str, Any]:
    """Run what is chosen; the certificate is written anew after each step."""
    import torch

    from d4m_fast.certification.certificate import certificate, path_of
    from d4m_fast.certification.step import run
    from d4m_fast.engine.runtime import full_fp32
    from d4m_fast.storage import files
    from d4m_fast.storage.locks import locked
    from d4m_fast.storage.state import MACHINE, write_state

    torch.set_num_threads(request.config.threads)
    full_fp32()
    with locked(files.make_directory(request.folder)):
        files.sweep(request.folder)
        for _ in track("certify", run(chosen, request.folder), quiet):
            write_state(path_of(request.folder), MACHINE, certificate(request, known, missing))
        return certificate(request, known, missing)


def _rows(request: Request, known: list[Step], missing: dict[str, str]) -> dict[str, str]:
    from d4m_fast.certification.step import recorded

    records = {step.name: recorded(request.folder, step) for step in known}
    states = {n: "to do" if r is None else "done" if r["passed"] else "failed" for n, r in records.items()}
    return states | {name: f"not here: {why}" for name, why in missing.items()}


def _render(file: Path, into: Path | None) -> None:
    from d4m_fast.certification.render import insert, markdown, read

    text = markdown(read(file))
    if into is None:
        say_lines(text.splitlines())
    else:
        insert(text, into)


def _lines(value: dict[str, Any], out: Path) -> list[str]:
    count = sum(len(record["checks"]) for record in value["steps"].values())
    head = "FAILED" if value["failed"] else "certified" if value["complete"] else "certified so far"
    lines = [f"{head}: {count - len(value['failed'])} of {count} checks passed; {out / 'certify.json'}"]
    for name, row in value["engines"].items():
        rate = "not timed" if row["generate"] is None else f"{row['generate']:.3g} images/s"
        lines.append(f"  {name}: {rate}")
    lines += [f"failed: {problem}" for problem in value["failed"]]
    lines += [f"to do: {', '.join(value['to_do'])}"] if value["to_do"] else []
    return [*lines, *(f"not here: {name}: {why}" for name, why in value["not_here"].items())]
