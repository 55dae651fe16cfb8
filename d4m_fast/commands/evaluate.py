"""`d4m-fast evaluate`: options, the students, and how the arms compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d4m_fast.console import Sized, lines_of, say, say_result, track
from d4m_fast.errors import PreflightError, UsageError
from d4m_fast.evaluation.students import STUDENTS
from d4m_fast.options import THREADS, shared

if TYPE_CHECKING:
    from d4m_fast.evaluation.results import LabelKind, Result, Subject

TRAINED = [name for name, student in STUDENTS.items() if student.is_trained]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--train-data", help="Real images for the random arm.  [default: what the run was made from]")
@click.option("--test-data", help="Real test images.  [default: the test split of what the run was made from]")
@click.option("--teacher", default="bundled", show_default=True, help="Teacher directory, for soft labels.")
@click.option("--student", type=click.Choice(TRAINED), default="convnet3", show_default=True)
@click.option("--width", type=click.IntRange(1, 4096), default=128, show_default=True, help="Channels of the student.")
@click.option("--protocol", type=click.Choice(["small"]), default="small", show_default=True)
@click.option("--label-kind", type=click.Choice(["soft", "hard"]), default="soft", show_default=True)
@click.option("--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Students per arm.")
@click.option("--workers", type=THREADS, help="Students trained side by side.  [default: one per core]")
@shared
def evaluate(run: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train students on a distilled set and on as many random real images; report last-epoch test accuracy.

    RUN is a run directory, or any directory of class folders of images.

    \b
    d4m-fast evaluate runs/demo --width 32
    d4m-fast evaluate their-images --train-data fashion-mnist --test-data fashion-mnist --label-kind hard
    """
    from d4m_fast.evaluation import results

    subject, train = _students(run, **options)
    kept = results.saved_results(run, subject)
    scores = list(track("students", train(), quiet)) if kept is None else kept
    value = results.to_json(subject, scores)
    try:
        say_result(value, as_json, lambda: [subject.title, *lines_of(results.table(scores))])
    finally:  # hours of training are not lost where they cannot be kept, nor where they cannot be printed
        if kept is None:
            _keep(run, subject, scores)


def _keep(run: Path, subject: Subject, scores: Sequence[Result]) -> None:
    from d4m_fast.evaluation import results

    try:
        results.save_results(run, subject, scores)
    except PreflightError as error:
        say(f"the results are not kept: {error}")


def _students(
    run: Path,
    *,
    train_data: str | None,
    test_data: str | None,
    teacher: str,
    student: str,
    width: int,
    protocol: str,
    label_kind: LabelKind,
    seeds: int,
    workers: int | None,
) -> tuple[Subject, Callable[[], Sized[Result]]]:
    """What is to be measured, and the training that measures it."""
    import torch

    from d4m_fast.evaluation.evaluate import evaluate as plan
    from d4m_fast.evaluation.protocols import PROTOCOLS
    from d4m_fast.evaluation.relabel import open_teacher, weights_sha256
    from d4m_fast.evaluation.results import Subject
    from d4m_fast.runs.run import require_finished, source_of
    from d4m_fast.sources.dataset import open_source

    require_finished(run)
    distilled = open_source(str(run), prompts_needed=False)
    origin = source_of(run) if train_data is None or test_data is None else None
    train = open_source(_known("--train-data", train_data, origin), prompts_needed=False)
    test = open_source(_known("--test-data", test_data, origin), split="test", prompts_needed=False)
    if test.fingerprint == train.fingerprint:
        raise UsageError("--test-data is needed: what the run was made from has no test images of its own")
    judge = open_teacher(teacher, [info.prompt for info in test.classes]) if label_kind == "soft" else None
    subject = Subject(
        run=str(run),
        images_per_class=len(distilled.items) // len(distilled.classes),
        protocol=protocol,
        student=student,
        width=width,
        label_kind=label_kind,
        seeds=seeds,
        teacher=weights_sha256(teacher) if judge is not None else None,
        data=(distilled.fingerprint, train.fingerprint, test.fingerprint),
    )
    return subject, lambda: plan(
        [distilled],
        train,
        test,
        judge,
        protocol=PROTOCOLS[protocol],
        student=student,
        width=width,
        label_kind=label_kind,
        seeds=range(seeds),
        workers=torch.get_num_threads() if workers is None else workers,
    )


def _known(option: str, given: str | None, origin: str | None) -> str:
    value = origin if given is None else given
    if value is None:
        raise UsageError(f"{option} is needed: this directory does not say what it was made from")
    return value
