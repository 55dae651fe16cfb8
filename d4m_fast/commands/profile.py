"""`d4m-fast profile`: how fast each stage is on this machine, and how near to what the machine can do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d4m_fast.config.fields import Group
from d4m_fast.config.profile import ProfileConfig
from d4m_fast.console import lines_of, say, say_result, track
from d4m_fast.errors import D4MError, PreflightError, require
from d4m_fast.options import PATH, command, config_of, option, options_of
from d4m_fast.storage import files

if TYPE_CHECKING:
    from d4m_fast.flow.stopwatch import Event


@command
@options_of(ProfileConfig)
@option("--artifacts", group=Group.OUTPUT, type=PATH, help="Where exports are kept.  [default: user cache]")
@option("--trace", group=Group.OUTPUT, type=PATH, help="Write a Chrome trace, for ui.perfetto.dev.")
@option("--plot", group=Group.OUTPUT, type=PATH, help="Write a PNG; needs the extra 'plot'.")
@option("--against", group=Group.OUTPUT, type=PATH, help="An earlier profile's JSON; exits 1 if slower or gone.")
@option(
    "--floor",
    group=Group.OUTPUT,
    default=0.9,
    show_default=True,
    help="Of images per second over the earlier ones.",
)
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
    Examples:
      d4m-fast profile
      d4m-fast profile --engine torch,onnx --batches 1,16,64 --json > profile.json
      d4m-fast plan --calibrate profile.json
      d4m-fast profile --json --against profile.json --floor 0.9
    """
    from d4m_fast.job import default_artifacts
    from d4m_fast.profiling import compare, tables
    from d4m_fast.profiling.session import open_session

    older, request = None if against is None else compare.read_older(against), config_of(ProfileConfig, options)
    require(floor >= 0, f"--floor must be at least 0, not {floor}")  # NaN is refused, too
    _check_outputs(trace, plot)
    session = open_session(request, default_artifacts() if artifacts is None else artifacts)
    for job in () if quiet else session.jobs:
        say(f"engine: {job.engine_reason}")
    for _ in track("profile", session.run(), quiet):
        pass
    value = session.to_json()
    comparison = None if older is None else compare.compare(older, value, floor, request)
    result = value if comparison is None else {**value, "against": comparison.to_json()}
    say_result(result, as_json, lambda: [*lines_of(tables.table(value)), *tables.notes(value)])
    _write(value, session.events, trace, plot)
    if comparison is not None:
        for line in tables.compared(comparison):
            say(line)
        sys.exit(D4MError.exit_code if comparison.slower or comparison.lost else 0)


def _check_outputs(trace: Path | None, plot: Path | None) -> None:
    """Refuse files that cannot be written, before minutes are spent on measuring."""
    for file in (trace, plot):
        if file is not None:
            files.make_directory(file.absolute().parent)
            if os.path.isdir(file):
                raise PreflightError(f"{file}: is a directory; name a file")
    if plot is not None:
        from d4m_fast.profiling.plot import require_plot

        require_plot()


def _write(value: dict[str, Any], events: Sequence[Event], trace: Path | None, plot: Path | None) -> None:
    """Write the trace and the plot, as far as they are asked for."""
    if trace is not None:
        from d4m_fast.profiling.trace import chrome_trace

        files.write_bytes(trace, json.dumps(chrome_trace(events)).encode())
    if plot is not None:
        from d4m_fast.profiling.plot import plot as draw

        files.write_bytes(plot, draw(value))
