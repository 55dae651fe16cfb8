"""`d4m-fast evaluate`: options, the students, and how the arms compare."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.config.fields import Group
from d4m_fast.console import Progress, lines_of, say_lines, say_result
from d4m_fast.endings import debugging
from d4m_fast.errors import UsageError
from d4m_fast.options import PATH, command, config_of, option, options_of


@command
@click.argument("run", type=PATH, nargs=-1)
@option("--protocols", "lists_protocols", group=Group.OUTPUT, is_flag=True, help="Print the protocols and end.")
@option("--render", group=Group.OUTPUT, type=PATH, multiple=True, help="Make report.html of results and end.")
@option("--out", group=Group.OUTPUT, type=PATH, help="Where the results are kept.  [default: the run's evaluation/]")
@option("--artifacts", group=Group.OUTPUT, type=PATH, help="Where other images' results are.  [default: user cache]")
@options_of(EvaluateConfig)
def evaluate(
    run: tuple[Path, ...],
    lists_protocols: bool,
    render: tuple[Path, ...],
    out: Path | None,
    artifacts: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train students on a distilled set and on other sets of its size; report last-epoch test accuracy.

    RUN is a run directory, or any directory of class folders of images; several are of one method with other seeds.

    \b
    Examples:
      d4m-fast evaluate runs/demo --width 32
      d4m-fast evaluate runs/demo --width 32 --regime hard --regime online --arms distilled,random,medoid,coreset
      d4m-fast evaluate their-images --train-data fashion-mnist --test-data fashion-mnist --regime hard
      d4m-fast evaluate --render runs/demo/evaluation/results.json
    """
    if lists_protocols:
        _list_protocols(as_json)
    elif render:
        _render(render, out)
    elif not run:
        raise UsageError("RUN is missing; or give --protocols, or --render FILE.json")
    else:
        config = config_of(EvaluateConfig, options)
        with _processes(config):
            _evaluate(run, config, out, artifacts, as_json, quiet)


def _processes(config: EvaluateConfig) -> contextlib.AbstractContextManager[None]:
    """Return the context of the processes that train a student together; of one process, it does nothing."""
    if config.data_parallel and not debugging():
        # Before PyTorch is imported: of a process that has ended, its C++ parts would print backtraces.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from d4m_fast.evaluation.parallel import joined
    from d4m_fast.examination.examination import ranks_of

    return joined(ranks_of(config))


def _evaluate(
    runs: Sequence[Path], config: EvaluateConfig, out: Path | None, artifacts: Path | None, as_json: bool, quiet: bool
) -> None:
    from d4m_fast.api.evaluating import finish_evaluation
    from d4m_fast.evaluation.workers import is_follower

    value = finish_evaluation(runs, config, out, artifacts, Progress(quiet or is_follower()))
    if not is_follower():
        say_result(value, as_json, lambda: _lines(value))


def _lines(value: dict[str, Any]) -> list[str]:
    from d4m_fast.evaluation import results

    checks = map(results.check_line, value["teacher_checks"])
    return [results.title(value["subject"]), *checks, *lines_of(results.table(value["rows"]))]


def _list_protocols(as_json: bool) -> None:
    from d4m_fast.evaluation.protocol_table import protocols_json, protocols_table, source_lines
    from d4m_fast.evaluation.protocols import PROTOCOLS

    protocols = list(PROTOCOLS.values())
    say_result(
        protocols_json(protocols),
        as_json,
        lambda: [*lines_of(protocols_table(protocols), width=160), *source_lines(protocols)],
    )


def _render(results: Sequence[Path], out: Path | None) -> None:
    from d4m_fast.report.files import write_report
    from d4m_fast.report.render import render_report
    from d4m_fast.report.results import read_results

    values = [read_results(file) for file in results]
    run = Path(values[0]["subject"]["run"])
    html = render_report(values, run if run.is_dir() else None)
    say_lines([str(write_report(results[0].parent if out is None else out, html))])
