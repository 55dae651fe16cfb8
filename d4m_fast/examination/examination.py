"""An evaluation that was opened: its teachers to check, its arms to build, its sets to label, its students to train."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from d4m_fast.arms.build import ArmBuilder
from d4m_fast.arms.features import Features, features_of
from d4m_fast.arms.names import ARMS
from d4m_fast.config.choices import Regime
from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.config.fields import available_threads
from d4m_fast.engine.runtime import resolve_device
from d4m_fast.evaluation.images import ImageSet, load_images, match_classes, of_classes
from d4m_fast.evaluation.parallel import Ranks, require_launcher
from d4m_fast.evaluation.protocols import Protocol
from d4m_fast.evaluation.stored import STORED, StoredLabels
from d4m_fast.evaluation.tasks import Exam, LabelTask, Task
from d4m_fast.evaluation.teacher_check import TeacherCheck, check_teacher, require_sound
from d4m_fast.evaluation.teachers import Teacher
from d4m_fast.evaluation.train import Execution
from d4m_fast.evaluation.workers import Job, place_in_launcher
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.sources.records import Source

# Not float16: the gradients of a loss at temperature 20 are too small for it without a scale.
AUTOCAST = {"none": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Examination:
    """A checked request to evaluate.

    Attributes:
        paths: of the distilled sets, one for each seed of the generation.
        distilled: their images, of the classes evaluated.
        test_ids: id in the test set of each class id of the first distilled set.
        work: directory of results, checkpoints and stored labels.
        labels: those that the "fixed" regime replays, by arm; of none, teachers make them.
        timed: seconds of each stage.
    """

    config: EvaluateConfig
    protocol: Protocol
    paths: tuple[Path, ...]
    distilled: tuple[Source, ...]
    train: Source
    test: Source
    test_ids: Mapping[int, int]
    regimes: tuple[Regime, ...]
    students: tuple[str, ...]
    teachers: Mapping[str, Teacher]
    arms: tuple[str, ...]
    folders: Mapping[str, Path]
    work: Path
    labels: Mapping[str, StoredLabels]
    timed: Stopwatch = field(default_factory=Stopwatch)

    @property
    def classes(self) -> tuple[int, ...]:
        """Ids in the test set of the classes evaluated, ascending."""
        return tuple(sorted(self.test_ids.values()))

    @property
    def outputs(self) -> int:
        """Outputs of every student and teacher: also for the classes that the distilled set leaves out."""
        return 1 + max(class_info.id for class_info in self.test.classes)

    @cached_property
    def test_images(self) -> ImageSet:
        """All test images of the classes evaluated."""
        protocol = self.protocol
        items = of_classes(self.test, set(self.classes))
        return load_images(self.test, protocol.resolution, items, shorter_side=protocol.test_resize)

    @cached_property
    def execution(self) -> Execution:
        device = resolve_device(self.config.device)
        return Execution(device, AUTOCAST[self.config.autocast], self.config.compile, ranks_of(self.config))

    @property
    def workers(self) -> int:
        """Students trained side by side: one per GPU, or per core of a CPU, unless the config says how many."""
        device = self.execution.device
        if self.config.workers is not None:
            return self.config.workers
        if device.type == "cpu":
            return available_threads()
        return torch.accelerator.device_count() if device.index is None else 1

    def check_teachers(self) -> list[TeacherCheck]:
        """Test every teacher on the real test images.

        Raises:
            ModelError: one is far below what its labels must be worth, and `unchecked_teacher` is not set.
        """
        folders, device = [class_info.folder for class_info in self.test.classes], self.execution.device
        images, checks = self.test_images.to(device), []
        with self.timed("teacher check"):
            for teacher in self.teachers.values():
                check = check_teacher(teacher.to(device), images, folders)
                if not self.config.unchecked_teacher:
                    require_sound(check, teacher, images)
                checks.append(check)
        return checks

    def build_exam(self) -> Exam:
        """Read or make the images of every arm; the result is all that training needs.

        Raises:
            errors of `ArmBuilder.build`.
        """
        sets, stored = dict[str, ImageSet](), dict[str, StoredLabels]()
        with self.timed("arms"):
            for arm, generation, seed in self._students_of_arms():
                name = self.set_name(arm, generation, seed)
                if name not in sets:
                    draw = generation * self.config.seeds + seed
                    sets[name] = self._builders[generation].build(arm, draw)
                if arm in self.labels:
                    stored[name] = self.labels[arm]
        return Exam(
            self.protocol,
            self.config.width,
            self.outputs,
            self.classes,
            self.test_images,
            sets,
            self.teachers,
            self.work,
            self.config.top_k,
            self.execution,
            stored,
        )

    @cached_property
    def _builders(self) -> list[ArmBuilder]:
        builders = []
        for path, distilled in zip(self.paths, self.distilled, strict=True):
            builder = ArmBuilder(
                path,
                distilled,
                self.train,
                match_classes(distilled, self.test),
                self.protocol.resolution,
                self.execution.device,
                self.features if "coreset" in self.arms else None,
                self.config.coreset,
                self.folders,
            )
            builder.require(self.arms)
            builders.append(builder)
        return builders

    def require_arms(self) -> None:
        """Refuse arms that cannot be built, before the teacher is checked."""
        _ = self._builders

    @cached_property
    def features(self) -> Features | None:
        """Features of the first teacher, which its last layer sees; None without teachers."""
        if not self.teachers:
            return None
        teacher = next(iter(self.teachers.values()))
        return features_of(teacher.network.to(self.execution.device), self.execution.device)

    def _students_of_arms(self) -> Iterator[tuple[str, int, int]]:
        """Yield arm, generation and seed of every student of one recipe."""
        # The slow part of a plan is its last job: with the arms interleaved any number of workers ends evenly.
        for seed, generation, arm in itertools.product(range(self.config.seeds), range(len(self.paths)), self.arms):
            yield arm, generation, seed

    def set_name(self, arm: str, generation: int, seed: int) -> str:
        """Return the name of the images a student learns from: those drawn for it, its generation's, or everybody's."""
        kind = ARMS.get(arm)
        if kind is None or arm in ("whole", "coreset"):
            return arm
        return f"{arm}/{generation}/{seed}" if kind.is_drawn else f"{arm}/{generation}"

    def tasks(self) -> list[Task]:
        """Return every student to train."""
        tasks = []
        for student, regime in itertools.product(self.students, self.regimes):
            teachers: list[str | None] = list(self.teachers)
            if regime == "hard":
                teachers = [None]
            elif regime == "fixed" and self.labels:
                teachers = [STORED]
            for teacher in teachers:
                for arm, generation, seed in self._students_of_arms():
                    name = self.set_name(arm, generation, seed)
                    tasks.append(Task(arm, name, regime, student, teacher, seed, generation))
        return tasks

    def label_tasks(self) -> list[Job]:
        """Return every image set that a teacher labels beforehand, each once."""
        tasks = dict[Job, None]()  # a set that keeps its order
        for task in self.tasks():
            if task.regime == "fixed" and task.teacher is not None:
                tasks[LabelTask(task.set_name, task.teacher, task.generation)] = None
        return list(tasks)


def ranks_of(config: EvaluateConfig) -> Ranks:
    """Return the processes that train each student together.

    Raises:
        UsageError: there should be several, and are not.
    """
    return require_launcher(place_in_launcher()) if config.data_parallel else Ranks()
