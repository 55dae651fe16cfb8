"""`d4m_fast.evaluate`, and the results that it and `d4m-fast evaluate` give."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from d4m_fast.api.runs import Run, path_of, require_pandas
from d4m_fast.api.signatures import with_options_of
from d4m_fast.api.surroundings import Callback, Progress, library_call
from d4m_fast.config.choices import Regime
from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.config.keywords import EvaluateOptions
from d4m_fast.config.values import config_from
from d4m_fast.errors import PreflightError, UsageError
from d4m_fast.flow.progress import Listener

if TYPE_CHECKING:
    import pandas

    from d4m_fast.evaluation.tasks import Exam, Result
    from d4m_fast.examination.examination import Examination


class Row(TypedDict, total=False):
    """A row of the results: one arm under one recipe; percent of the test images after the last epoch.

    `report/schema.json` describes the fields.
    """

    image_bytes: int
    arm: str
    regime: Regime
    protocol: str
    student: str
    teacher: str | None
    images_per_class: int
    seeds: list[list[int]]
    accuracy: list[float]
    mean: float
    std: float | None
    best_epoch_mean: float
    difference_to_random: dict[str, float | None] | None
    label_bytes: int
    per_class: list[float]
    confusion: list[list[int]] | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
        rows: one for each arm, regime, student and teacher: those of `d4m-fast evaluate --json`.
    """

    _value: Mapping[str, Any] = field(repr=False)

    @property
    def rows(self) -> list[Row]:
        rows: list[Row] = copy.deepcopy(self._value["rows"])
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return everything that `d4m-fast evaluate --json` prints, as plain values."""
        return copy.deepcopy(dict(self._value))

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a table.

        Raises:
            PreflightError: pandas is not installed.
        """
        pandas = require_pandas("to_pandas")
        return pandas.DataFrame(self.rows)


@with_options_of(EvaluateConfig)
def evaluate(
    run: Run | str | os.PathLike[str] | Sequence[Run | str | os.PathLike[str]],
    config: EvaluateConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    artifacts: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Train students on a distilled set and on other sets of its size, and test them on all real test images.

    Results are kept beside the run as those of the command are, and students that are finished are not trained again.

    Args:
        run: a run, a directory of class folders of images, or several of one method with other seeds.
        config: what the options change; the defaults when omitted.
        out: where results and students are kept; the run's evaluation/ when omitted.
        artifacts: where they are kept for other images; the user's cache when omitted.
        progress: called with (stage, done, total) of the stages "labels" and "students", first with done = 0. An
            exception of it ends the call.
        options: fields of `EvaluateConfig`; one value stands for a list of one.

    Raises:
        D4MError: one line that says what is wrong; students that are finished stay.
    """
    request = config_from(EvaluateConfig, config, options)
    runs = [run] if isinstance(run, (Run, str, os.PathLike)) else run
    if not runs:
        raise UsageError("run: an empty list; give a run, or a directory of images")
    with library_call():
        value = finish_evaluation(
            [path_of(each) for each in runs],
            request,
            None if out is None else Path(os.fspath(out)),
            None if artifacts is None else Path(os.fspath(artifacts)),
            Callback(progress),
        )
    return Evaluation(value)


def finish_evaluation(
    runs: Sequence[Path], config: EvaluateConfig, out: Path | None, artifacts: Path | None, listener: Listener
) -> dict[str, Any]:
    """Train what is missing of an evaluation, and return and keep its results; arguments are those of `evaluate`.

    Under a launcher all processes return the results, and the first one keeps them.

    Raises:
        D4MError: why it cannot be done.
    """
    from d4m_fast.evaluation import results
    from d4m_fast.evaluation.workers import is_follower
    from d4m_fast.examination.opening import open_examination, work_folder
    from d4m_fast.examination.outcome import outcome_of
    from d4m_fast.job import default_artifacts

    if out is None:
        out = work_folder(runs[0], default_artifacts() if artifacts is None else artifacts)
    # Before the folder is made: what is refused leaves nothing behind.
    examination = open_examination(runs, config, out)
    checks = examination.check_teachers()
    for check in checks:
        listener.say(results.check_line(check.to_json()))
    with _writable(out, listener) as work:
        if work != out:
            examination = dataclasses.replace(examination, work=work)
        exam = examination.build_exam()
        trained = _train(examination, exam, listener)
        value = outcome_of(examination, exam, trained, checks)
        if work == out and not is_follower():
            _keep(out / "results.json", value, listener)
    return value


def _keep(path: Path, value: dict[str, Any], listener: Listener) -> None:
    from d4m_fast.evaluation import results

    try:
        results.save(path, value)
    except PreflightError as error:
        listener.warn(f"the results are not kept: {error}")


@contextlib.contextmanager
def _writable(out: Path, listener: Listener) -> Iterator[Path]:
    """Yield the directory itself, or a temporary one where nothing can be written to it, and say so."""
    from d4m_fast.storage import files

    try:
        trial = files.make_directory(out) / f"{files.TEMPORARY}trial"
        files.write_bytes(trial, b"")
        files.remove(trial)
    except PreflightError as error:
        listener.warn(f"the results are not kept: {error}")
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        yield out


def _train(examination: Examination, exam: Exam, listener: Listener) -> list[Result]:
    """Do all jobs, or this process's share under a launcher, and return all results in the order of the jobs."""
    from d4m_fast.evaluation.workers import Schedule

    results, tasks = list["Result"](), examination.tasks()
    for stage, jobs in (("labels", examination.label_tasks()), ("students", tasks)):
        with examination.timed(stage):
            for result in listener.track(stage, Schedule(exam, jobs, examination.workers)):
                if result is not None:
                    results.append(result)
    places = {task: place for place, task in enumerate(tasks)}
    return sorted(results, key=lambda result: places[result.task])
