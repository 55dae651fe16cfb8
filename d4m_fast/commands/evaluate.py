"""`d4m-fast evaluate`: options, the students, and how the arms compare."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.config.fields import Group
from d4m_fast.console import lines_of, say, say_lines, say_result, track
from d4m_fast.endings import debugging
from d4m_fast.errors import PreflightError, UsageError
from d4m_fast.options import PATH, command, config_of, option, options_of

if TYPE_CHECKING:
    from d4m_fast.evaluation.tasks import Exam, Result
    from d4m_fast.examination.examination import Examination


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
    from d4m_fast.evaluation import results
    from d4m_fast.evaluation.workers import is_follower
    from d4m_fast.examination.opening import open_examination, work_folder
    from d4m_fast.examination.outcome import outcome_of
    from d4m_fast.job import default_artifacts

    if out is None:
        out = work_folder(runs[0], default_artifacts() if artifacts is None else artifacts)
    quiet = quiet or is_follower()  # of the processes of a launcher one speaks
    # Before the folder is made: what is refused leaves nothing behind.
    examination = open_examination(runs, config, out)
    checks = examination.check_teachers()
    if not quiet:
        for check in checks:
            say(results.check_line(check.to_json()))
    with _writable(out) as work:
        if work != out:
            examination = dataclasses.replace(examination, work=work)
        exam = examination.build_exam()
        trained = _train(examination, exam, quiet)
        if is_follower():
            return
        value = outcome_of(examination, exam, trained, checks)
        try:
            say_result(value, as_json, lambda: _lines(value))
        finally:  # what took hours is not lost where it cannot be printed
            if work == out:
                _keep(out / "results.json", value)


def _keep(path: Path, value: dict[str, Any]) -> None:
    from d4m_fast.evaluation import results

    try:
        results.save(path, value)
    except PreflightError as error:
        say(f"the results are not kept: {error}")


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[Path]:
    """Yield the directory itself, or a temporary one where nothing can be written to it, and say so."""
    from d4m_fast.storage import files

    try:
        # A directory that is there may still refuse files: on a read-only disk, or another user's.
        trial = files.make_directory(out) / f"{files.TEMPORARY}trial"
        files.write_bytes(trial, b"")
        files.remove(trial)
    except PreflightError as error:
        say(f"the results are not kept: {error}")
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        yield out


def _train(examination: Examination, exam: Exam, quiet: bool) -> list[Result]:
    """Do all jobs, or this process's share under a launcher, and return all results in the order of the jobs."""
    from d4m_fast.evaluation.workers import Schedule

    results, tasks = list["Result"](), examination.tasks()
    for stage, jobs in (("labels", examination.label_tasks()), ("students", tasks)):
        with examination.timed(stage):
            for result in track(stage, Schedule(exam, jobs, examination.workers), quiet):
                if result is not None:
                    results.append(result)
    places = {task: place for place, task in enumerate(tasks)}
    return sorted(results, key=lambda result: places[result.task])


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
