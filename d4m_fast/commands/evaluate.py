"""`d4m-fast evaluate`: options, the students, and how the arms compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.console import Sized, lines_of, say, say_result, track
from d4m_fast.errors import PreflightError, UsageError
from d4m_fast.options import PATH, command, config_of, options_of

if TYPE_CHECKING:
    from d4m_fast.evaluation.results import Result, Subject


@command
@click.argument("run", type=PATH)
@options_of(EvaluateConfig)
def evaluate(run: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train students on a distilled set and on as many random real images; report last-epoch test accuracy.

    RUN is a run directory, or any directory of class folders of images.

    \b
    Examples:
      d4m-fast evaluate runs/demo --width 32
      d4m-fast evaluate their-images --train-data fashion-mnist --test-data fashion-mnist --label-kind hard
    """
    from d4m_fast.evaluation import results

    subject, train = _students(run, config_of(EvaluateConfig, options))
    saved = results.saved_results(run, subject)
    scores = list(track("students", train(), quiet)) if saved is None else saved
    value = results.to_json(subject, scores)
    try:
        say_result(value, as_json, lambda: [subject.title, *lines_of(results.table(scores))])
    finally:  # hours of training are not lost where they cannot be kept, nor where they cannot be printed
        if saved is None:
            _save(run, subject, scores)


def _save(run: Path, subject: Subject, scores: Sequence[Result]) -> None:
    from d4m_fast.evaluation import results

    try:
        results.save_results(run, subject, scores)
    except PreflightError as error:
        say(f"the results are not kept: {error}")


def _students(run: Path, config: EvaluateConfig) -> tuple[Subject, Callable[[], Sized[Result]]]:
    """Return the subject of the measurement, and the training that measures it."""
    from d4m_fast.evaluation.evaluate import evaluate as plan
    from d4m_fast.evaluation.protocols import PROTOCOLS
    from d4m_fast.evaluation.relabel import open_teacher, weights_sha256
    from d4m_fast.evaluation.results import Subject
    from d4m_fast.runs.run import require_finished, source_of
    from d4m_fast.sources.dataset import open_source

    require_finished(run)
    distilled = open_source(str(run), prompts_needed=False)
    origin = source_of(run) if config.train_data is None or config.test_data is None else None
    train = open_source(_data_name("--train-data", config.train_data, origin), prompts_needed=False)
    test = open_source(_data_name("--test-data", config.test_data, origin), split="test", prompts_needed=False)
    if test.fingerprint == train.fingerprint:
        raise UsageError("--test-data is needed: what the run was made from has no test images of its own")
    soft = config.label_kind == "soft"
    prompts = [test_class.prompt for test_class in test.classes]
    teacher = open_teacher(config.teacher, prompts) if soft else None
    subject = Subject(
        run=str(run),
        images_per_class=len(distilled.items) // len(distilled.classes),
        protocol=config.protocol,
        student=config.student,
        width=config.width,
        label_kind=config.label_kind,
        seeds=config.seeds,
        teacher=weights_sha256(config.teacher) if soft else None,
        data=(distilled.fingerprint, train.fingerprint, test.fingerprint),
    )
    return subject, lambda: plan(
        [distilled],
        train,
        test,
        teacher,
        protocol=PROTOCOLS[config.protocol],
        student=config.student,
        width=config.width,
        label_kind=config.label_kind,
        seeds=range(config.seeds),
        workers=config.workers,
    )


def _data_name(flag: str, value: str | None, origin: str | None) -> str:
    """Return an option's value, or what the run was made from where it has none.

    Raises:
        UsageError: neither is known, as of a directory of another method's images.
    """
    name = origin if value is None else value
    if name is None:
        raise UsageError(f"{flag} is needed: this directory does not say what it was made from")
    return name
