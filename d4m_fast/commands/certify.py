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

FAILED = 1  # exit code: a check failed, and the certificate says which


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
    runnable_steps, missing = all_steps(request, now_and_then(quiet))
    selected_steps = choose(runnable_steps, steps)
    if list_only:
        states = _states(request, runnable_steps, missing)
        say_result({"steps": states}, as_json, lambda: [f"{name}: {state}" for name, state in states.items()])
        return
    value = _certify(request, runnable_steps, selected_steps, missing, quiet)
    say_result(value, as_json, lambda: _lines(value, out))
    if not value["passed"]:
        sys.exit(FAILED)


def _certify(
    request: Request, runnable: list[Step], selected: list[Step], missing: dict[str, str], quiet: bool
) -> dict[str, Any]:
    """Run the selected steps and return the certificate, which is written anew after each of them."""
    import torch

    from d4m_fast.certification.certificate import certificate, path_of
    from d4m_fast.certification.step import run
    from d4m_fast.engine.runtime import full_fp32
    from d4m_fast.storage import files
    from d4m_fast.storage.locks import locked
    from d4m_fast.storage.state import MACHINE, write_state

    torch.set_num_threads(request.config.threads)
    full_fp32()  # TF32 would be a third precision, between those that are compared
    with locked(files.make_directory(request.folder)):
        files.sweep(request.folder)
        for _ in track("certify", run(selected, request.folder), quiet):
            write_state(path_of(request.folder), MACHINE, certificate(request, runnable, missing))
        return certificate(request, runnable, missing)


def _states(request: Request, runnable: list[Step], missing: dict[str, str]) -> dict[str, str]:
    """Return for every step whether it is done, or why it cannot be done here."""
    from d4m_fast.certification.step import recorded

    states = dict[str, str]()
    for step in runnable:
        record = recorded(request.folder, step)
        states[step.name] = "to do" if record is None else "done" if record["passed"] else "failed"
    for name, reason in missing.items():
        states[name] = f"not here: {reason}"
    return states


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
    if value["to_do"]:
        lines.append(f"to do: {', '.join(value['to_do'])}")
    for name, reason in value["not_here"].items():
        lines.append(f"not here: {name}: {reason}")
    return lines
