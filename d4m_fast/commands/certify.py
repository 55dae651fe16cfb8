"""`d4m-fast certify`: what this machine's engines compute, and how fast, checked against the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d4m_fast.config import CertifyConfig
from d4m_fast.console import now_and_then, say_lines, say_result, say_weights, track
from d4m_fast.options import THREADS, shared

if TYPE_CHECKING:
    from d4m_fast.certification.request import Request
    from d4m_fast.certification.step import Step

FAILED = 1


@click.command()
@click.option("--model", default=CertifyConfig.model, show_default=True, help="'bundled', a directory, or a hub id.")
@click.option("--revision", help="Commit, tag or branch of a model from the hub.  [default: main]")
@click.option("--data", default=CertifyConfig.data, show_default=True, help="Real images to compare engines on.")
@click.option("--artifacts", type=click.Path(path_type=Path), help="Where exports are kept.  [default: user cache]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("certify"), show_default=True, help="Results.")
@click.option("--resolution", type=click.IntRange(min=1), help="Side of the images.  [default: the model's]")
@click.option("--images", type=click.IntRange(min=2), help="To compare on.  [default: 32, fewer of a large model]")
@click.option("--seconds", type=float, default=CertifyConfig.seconds, show_default=True, help="Of each steady state.")
@click.option("--batches", help="Images per call to try: 1,8,64.  [default: powers of two while they pay]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--threads", type=THREADS, help="CPU threads.  [default: one per core]")
@click.option("--compile/--no-compile", default=False, show_default=True, help="torch.compile on a CPU, too.")
@click.option("--steps", help="Only these: 'parity', or 'export-onnx-fp32,speed-onnx'.  [default: all]")
@click.option("--list", "list_only", is_flag=True, help="Show the steps and which of them are done, instead.")
@click.option("--render", type=click.Path(path_type=Path), help="Print a certify.json as Markdown, instead.")
@click.option("--into", type=click.Path(path_type=Path), help="With --render: write it between this file's markers.")
@shared
def certify(
    artifacts: Path | None,
    out: Path,
    threads: int | None,
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
    d4m-fast certify
    d4m-fast certify --steps parity,speed-torch --seconds 5
    d4m-fast certify --model stable-diffusion-v1-5 --data imagenet/train --out certify-sd15
    d4m-fast certify --render certify/certify.json --into docs/certify.md
    """
    if render is not None:
        _render(render, into)
        return
    import torch

    from d4m_fast.certification.request import prepare_certification
    from d4m_fast.certification.step import choose
    from d4m_fast.certification.steps import all_steps
    from d4m_fast.config import require
    from d4m_fast.job import default_artifacts

    require(into is None, "--into is for --render")
    config = CertifyConfig(**options, threads=torch.get_num_threads() if threads is None else threads)
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
