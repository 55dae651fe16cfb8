"""A distilled set beside the same number of random real images, under one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from d4m_fast.config.choices import LabelKind
from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.errors import DataError, ModelError, UsageError
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.images import (
    ImageSet,
    images_per_class,
    load_images,
    match_classes,
    of_classes,
    random_subset,
)
from d4m_fast.evaluation.protocols import Protocol
from d4m_fast.evaluation.relabel import takes
from d4m_fast.evaluation.results import DISTILLED, RANDOM, Result
from d4m_fast.evaluation.train import Exam, Task
from d4m_fast.evaluation.workers import run_tasks
from d4m_fast.sources.records import Source


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A sized iterable of results, in the order they finish. Iterating trains; each iteration trains anew."""

    exam: Exam
    tasks: tuple[Task, ...]
    workers: int

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Result]:
        return run_tasks(self.exam, self.tasks, self.workers)


def evaluate(
    runs: Sequence[Source],
    train_source: Source,
    test_source: Source,
    teacher: ConvNet | None,
    *,
    protocol: Protocol,
    student: str = EvaluateConfig.student,
    width: int = EvaluateConfig.width,
    label_kind: LabelKind = EvaluateConfig.label_kind,
    seeds: Sequence[int] = range(EvaluateConfig.seeds),
    workers: int = 1,
) -> Evaluation:
    """Load all images and plan one student per seed and arm, distilled and random; nothing is trained yet.

    Classes are matched by folder name, and labelled by the test set's class ids. When the run holds only some of
    the classes, test images, random images and logits are restricted to them; students keep the full head.

    Args:
        runs: the distilled images: one source for all seeds, or one per seed (generated with different seeds).
        train_source: real images; each seed draws a new class-balanced subset as large as the run.
        test_source: real images, all of which are tested.
        teacher: takes images of the protocol's size and has the test set's class ids; needed for soft labels.
        student: one of `STUDENTS`.
        width: channels of the student's convolutions; state it beside every number.
        seeds: of the student, and of the random subset.

    Raises:
        DataError: a class without match, damaged or missing images, classes of different size.
        ModelError: the teacher does not fit the images or the classes.
        UsageError: options that make no sense together.
    """
    _check_options(runs, teacher, label_kind, seeds, workers)
    size = protocol.image_size
    test_ids = match_classes(runs[0], test_source)
    # An output for every class of the test set, also for those that the run leaves out: teachers have them too.
    outputs = 1 + max(class_info.id for class_info in test_source.classes)
    _check_teacher(teacher, size, outputs)
    test = load_images(test_source, size, of_classes(test_source, set(test_ids.values())))
    exam = Exam(protocol, width, outputs, tuple(sorted(test_ids.values())), test, teacher, student)
    distilled = _load_runs(runs, test_source, size)
    # The slow part of a plan is its last task: with the arms interleaved any number of workers ends evenly.
    tasks = []
    for i, seed in enumerate(seeds):
        tasks.append(Task(DISTILLED, label_kind, seed, distilled[i % len(distilled)]))
        tasks.append(Task(RANDOM, label_kind, seed, _draw_random(runs[0], train_source, test_ids, size, seed)))
    return Evaluation(exam, tuple(tasks), workers)


def _check_options(
    runs: Sequence[Source], teacher: ConvNet | None, label_kind: LabelKind, seeds: Sequence[int], workers: int
) -> None:
    if not seeds or workers < 1:
        raise UsageError("at least one seed and one worker are needed")
    if len(runs) not in (1, len(seeds)):
        raise UsageError(f"{len(runs)} runs for {len(seeds)} seeds: give one run, or one per seed")
    if label_kind == "soft" and teacher is None:
        raise UsageError("soft labels need a teacher")


def _check_teacher(teacher: ConvNet | None, size: int, outputs: int) -> None:
    if teacher is None:
        return
    if teacher.head.out_features != outputs:
        raise ModelError(f"the teacher knows {teacher.head.out_features} classes, the test set has {outputs}")
    if not takes(teacher, size):
        raise ModelError(f"the teacher does not take the protocol's images of {size} pixels a side")


def _load_runs(runs: Sequence[Source], test_source: Source, size: int) -> list[ImageSet]:
    folders, budget = {class_info.folder for class_info in runs[0].classes}, images_per_class(runs[0])
    for run in runs[1:]:
        if {class_info.folder for class_info in run.classes} != folders or images_per_class(run) != budget:
            raise DataError("the runs differ in their classes or in images per class")
    return [load_images(run, size, ids=match_classes(run, test_source)) for run in runs]


def _draw_random(run: Source, train_source: Source, test_ids: dict[int, int], size: int, seed: int) -> ImageSet:
    train_ids = match_classes(run, train_source)
    ids = {train_ids[class_id]: label for class_id, label in test_ids.items()}
    return load_images(train_source, size, random_subset(train_source, images_per_class(run), seed, ids), ids)
