"""`d4m-fast profile`: how fast each stage is on this machine, and how near to what the machine can do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from d4m_fast.config import Engine, require
from d4m_fast.console import lines_of, say, say_result, track
from d4m_fast.errors import D4MError, PreflightError
from d4m_fast.options import BATCH, THREADS, of_config, shared
from d4m_fast.storage import files

if TYPE_CHECKING:
    from d4m_fast.flow.stopwatch import Event
    from d4m_fast.profiling.request import ProfileRequest


@click.command()
@of_config("--model", str, "'bundled', or a directory in diffusers format.")
@of_config("--data", str, "Real images: 'bundled', or a directory.")
@click.option("--artifacts", type=click.Path(path_type=Path), help="Where exports are kept.  [default: user cache]")
@click.option(
    "--engine", default="auto", show_default=True, help=f"{', '.join(get_args(Engine))}; several with commas."
)
@of_config("--precision", click.Choice(["auto", "fp32", "fp16"]), "auto: fp16 on GPUs, fp32 on CPUs.")
@of_config("--device", str, "auto, cpu, cuda or cuda:1.")
@click.option("--batches", default="1,8,32", show_default=True, help="Images per call.")
@click.option("--stages", default="all", show_default=True, help="encode,kmeans,text,unet,decode,write,distill.")
@click.option("--seconds", default=1.0, show_default=True, help="Time at least, per stage, engine and batch.")
@click.option("--repeats", default=5, show_default=True, help="Calls at least, after one that is not counted.")
@click.option("--images", default=160, show_default=True, help="Real images to cluster, and to distill end to end.")
@of_config("--threads", THREADS, "CPU threads.  [default: one per core]")
@click.option("--trace", type=click.Path(path_type=Path), help="Write a Chrome trace, for ui.perfetto.dev.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a PNG; needs the extra 'plot'.")
@click.option(
    "--against", type=click.Path(path_type=Path), help="An earlier profile's JSON; exits 1 if slower or gone."
)
@click.option("--floor", default=0.9, show_default=True, help="Of images per second over the earlier ones.")
@shared
def profile(
    artifacts: Path | None,
    trace: Path | None,
    plot: Path | None,
    against: Path | None,
    floor: float,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure every stage's images per second, latency, memory and share of this machine's peak.

    Stages are called alone, on every engine and batch; 'distill' is a whole small run. The peak is that of matrix
    product and convolution, measured in the same run. Nothing that this writes stays, but the files you name.

    \b
    d4m-fast profile
    d4m-fast profile --engine torch,onnx --batches 1,16,64 --json > profile.json
    d4m-fast plan --calibrate profile.json
    d4m-fast profile --json --against profile.json --floor 0.9
    """
    from d4m_fast.job import default_artifacts
    from d4m_fast.profiling import compare, tables
    from d4m_fast.profiling.session import open_session

    older, request = None if against is None else compare.read_older(against), _request(options)
    require(floor >= 0, f"--floor must be at least 0, not {floor}")  # nor NaN
    _check_outputs(trace, plot)
    session = open_session(request, default_artifacts() if artifacts is None else artifacts)
    for job in () if quiet else session.jobs:
        say(f"engine: {job.engine_reason}")
    for _ in track("profile", session.run(), quiet):
        pass
    value = session.to_json()
    comparison = None if older is None else compare.compare(older, value, floor, request)
    whole = value if comparison is None else {**value, "against": comparison.to_json()}
    say_result(whole, as_json, lambda: [*lines_of(tables.table(value)), *tables.notes(value)])
    _write(value, session.events, trace, plot)
    if comparison is not None:
        for line in tables.compared(comparison):
            say(line)
        sys.exit(D4MError.exit_code if comparison.slower or comparison.lost else 0)


def _request(options: dict[str, Any]) -> ProfileRequest:
    from d4m_fast.profiling.request import STAGES, ProfileRequest

    engines, stages, batches = (options.pop(name) for name in ("engine", "stages", "batches"))
    return ProfileRequest(
        engines=_parts(engines),
        stages=STAGES if stages == "all" else _parts(stages),
        batches=tuple(sorted({_whole(part) for part in _parts(batches)})),
        **options,
    )


def _parts(given: str) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))


def _whole(part: str) -> int:
    most = BATCH.max
    require(
        part.isdecimal() and len(part) <= len(str(most)),
        f"--batches: {part!r} is not a whole number up to {most}; a list like 1,8,32",
    )
    return int(part)


def _check_outputs(trace: Path | None, plot: Path | None) -> None:
    """Refuse before anything is measured."""
    for file in (trace, plot):
        if file is not None:
            files.make_directory(file.absolute().parent)
            if os.path.isdir(file):
                raise PreflightError(f"{file}: is a directory; name a file")
    if plot is not None:
        from d4m_fast.profiling.plot import require_plot

        require_plot()


def _write(value: dict[str, Any], events: Sequence[Event], trace: Path | None, plot: Path | None) -> None:
    """The files that were asked for."""
    if trace is not None:
        from d4m_fast.profiling.trace import chrome_trace

        files.write_bytes(trace, json.dumps(chrome_trace(events)).encode())
    if plot is not None:
        from d4m_fast.profiling.plot import plot as draw

        files.write_bytes(plot, draw(value))
