"""Evaluation on one page: open the sets, check the teachers, build the arms, label, train, compare."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from d4m_fast import __version__
from d4m_fast.arms.build import ArmBuilder
from d4m_fast.arms.classes import part_of, require_alike
from d4m_fast.arms.features import Features, features_of
from d4m_fast.arms.names import ARMS, parse_arms, parse_folders
from d4m_fast.config.choices import Regime
from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.config.fields import available_threads
from d4m_fast.engine.runtime import hardware, resolve_device
from d4m_fast.errors import DataError, ModelError, NonFiniteError, UsageError
from d4m_fast.evaluation.images import ImageSet, images_per_class, is_same_set, load_images, match_classes, of_classes
from d4m_fast.evaluation.overrides import overridden, parse_override
from d4m_fast.evaluation.protocols import PROTOCOLS, Protocol
from d4m_fast.evaluation.results import Subject, to_json
from d4m_fast.evaluation.stored import STORED, StoredLabels, parse_labels, require_labels
from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.tasks import Exam, LabelTask, Result, Task
from d4m_fast.evaluation.teacher_check import TeacherCheck, check_teacher, require_sound
from d4m_fast.evaluation.teachers import Teacher, open_teacher
from d4m_fast.evaluation.train import Execution
from d4m_fast.evaluation.workers import Job
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.report.feature_map import feature_map, mapped_images
from d4m_fast.runs.run import artifacts_of, options_of, require_finished, source_of
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.entries import INDEXES
from d4m_fast.sources.records import Source
from d4m_fast.storage.files import bytes_on_disk

# One of each family: plain convolutions, residual, inverted bottlenecks, a transformer.
MATRIX = ("convnet3", "resnet18", "mobilenet_v3_small", "timm/vit_tiny_patch16_224")
MAPPED_ARMS = {"real": "random", "prototype": "decoded", "distilled": "distilled"}  # kinds of the map of features
# Not float16: the gradients of a loss at temperature 20 are too small for it without a scale.
AUTOCAST = {"none": None, "bf16": torch.bfloat16}
log = logging.getLogger(__name__)


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
        return Execution(device, AUTOCAST[self.config.autocast], self.config.compile)

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
                name = self._set_name(arm, generation, seed)
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
                self._features if "coreset" in self.arms else None,
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
    def _features(self) -> Features | None:
        """Features of the first teacher, which its last layer sees; None without teachers."""
        if not self.teachers:
            return None
        teacher = next(iter(self.teachers.values()))
        return features_of(teacher.network.to(self.execution.device), self.execution.device)

    def _feature_map(self, exam: Exam) -> dict[str, Any] | None:
        """Return where images of the first generation lie in the first teacher's features."""
        names = {kind: self._set_name(arm, 0, 0) for kind, arm in MAPPED_ARMS.items()}
        sets = {kind: mapped_images(exam.sets[name], self.classes) for kind, name in names.items() if name in exam.sets}
        if not self.teachers:
            return None
        try:
            with self.timed("feature map"):
                return None if self._features is None else feature_map(self._features, sets)
        except (DataError, ModelError, NonFiniteError) as error:  # a picture is no reason to lose hours of training
            log.warning("no map of the teacher's features: %s", error)
            return None

    def _students_of_arms(self) -> Iterator[tuple[str, int, int]]:
        """Yield arm, generation and seed of every student of one recipe."""
        # The slow part of a plan is its last job: with the arms interleaved any number of workers ends evenly.
        for seed, generation, arm in itertools.product(range(self.config.seeds), range(len(self.paths)), self.arms):
            yield arm, generation, seed

    def _set_name(self, arm: str, generation: int, seed: int) -> str:
        """Return the name of the images a student learns from: those drawn for it, its generation's, or everybody's."""
        known = ARMS.get(arm)
        if known is None or arm in ("whole", "coreset"):
            return arm
        return f"{arm}/{generation}/{seed}" if known.is_drawn else f"{arm}/{generation}"

    def tasks(self) -> list[Task]:
        """Return every student to train."""
        tasks = []
        for student, regime in itertools.product(self.students, self.regimes):
            for teacher in self._teachers_of(regime):
                for arm, generation, seed in self._students_of_arms():
                    name = self._set_name(arm, generation, seed)
                    tasks.append(Task(arm, name, regime, student, teacher, seed, generation))
        return tasks

    def _teachers_of(self, regime: Regime) -> list[str | None]:
        if regime == "hard":
            return [None]
        return [STORED] if regime == "fixed" and self.labels else list(self.teachers)

    def label_tasks(self) -> list[Job]:
        """Return every image set that a teacher labels beforehand, each once."""
        tasks = (task for task in self.tasks() if task.regime == "fixed" and task.teacher is not None)
        return list(dict.fromkeys(LabelTask(task.set_name, str(task.teacher), task.generation) for task in tasks))

    def to_json(self, exam: Exam, results: Sequence[Result], checks: Sequence[TeacherCheck]) -> dict[str, Any]:
        """Return everything that the evaluation says."""
        folders = {class_info.id: class_info.folder for class_info in self.test.classes}
        subject = Subject(
            runs=tuple(map(str, self.paths)),
            images_per_class=images_per_class(self.distilled[0]),
            classes=tuple(folders[class_id] for class_id in self.classes),
            protocol=self.protocol.to_json(),
            seeds=self.config.seeds,
            data=(*(part.fingerprint for part in self.distilled), self.train.fingerprint, self.test.fingerprint),
        )
        return to_json(
            subject,
            results,
            image_bytes=self._image_bytes(),
            checks=checks,
            feature_map=self._feature_map(exam),
            provenance=self.provenance,
            seconds={**self.timed.seconds, "total": sum(self.timed.seconds.values())},
        )

    def _image_bytes(self) -> dict[str, int]:
        """Return the bytes of the arms that are files of their own."""
        first = self.paths[0]
        distilled = first / "images" if options_of(first) else first
        return {arm: bytes_on_disk(path) for arm, path in {**self.folders, "distilled": distilled}.items()}

    @property
    def provenance(self) -> dict[str, Any]:
        """What the numbers come from: versions, machine, teachers, and how each distilled set was made."""
        libraries = ("torch", "torchvision", "timm", "numpy", "pillow")
        return {
            "versions": {"d4m-fast": __version__, **{name: importlib.metadata.version(name) for name in libraries}},
            "machine": hardware(self.execution.device),
            "autocast": self.config.autocast,
            "workers": self.workers,
            "width": self.config.width,
            "top_k": self.config.top_k,
            "coreset": self.config.coreset if "coreset" in self.arms else None,
            "teachers": {name: teacher.sha256 for name, teacher in self.teachers.items()},
            "labels": {arm: stored.digest for arm, stored in self.labels.items()},
            "runs": {str(path): options_of(path) for path in self.paths},
        }


def open_examination(paths: Sequence[Path], config: EvaluateConfig, work: Path) -> Examination:
    """Open everything that an evaluation needs, and refuse what cannot be done, before anything is trained.

    Args:
        paths: run directories or directories of class folders, one for each seed of the generation.
        work: directory of results, checkpoints and stored labels.

    Raises:
        D4MError: the first thing that is wrong.
    """
    for path in paths:
        require_finished(path)
    distilled = [open_source(str(path), prompts_needed=False) for path in paths]
    origin = source_of(paths[0]) if config.train_data is None or config.test_data is None else None
    artifacts = artifacts_of(paths[0])
    open_real = partial(open_source, prompts_needed=False, indexes=None if artifacts is None else artifacts / INDEXES)
    train = open_real(_data_name("--train-data", config.train_data, origin))
    test = open_real(_data_name("--test-data", config.test_data, origin), split="test")
    if is_same_set(test, train):
        raise UsageError("--test-data is needed: what the run was made from has no test images of its own")
    if config.classes is not None:
        distilled = [part_of(part, test, config.classes) for part in distilled]
    require_alike(distilled)
    protocol = _protocol(config)
    arms, folders = parse_arms(config.arms), parse_folders(config.arm)
    regimes = config.regime if config.regime else (protocol.regime,)
    labels = parse_labels(config.labels, [class_info.folder for class_info in test.classes])
    require_labels(labels, (*arms, *folders), folders, regimes, len(paths), protocol)
    needs_teacher = "coreset" in arms or not {*regimes} <= ({"hard", "fixed"} if labels else {"hard"})
    names = (config.teacher if config.teacher else (protocol.teacher,)) if needs_teacher else ()
    examination = Examination(
        config,
        protocol,
        tuple(paths),
        tuple(distilled),
        train,
        test,
        match_classes(distilled[0], test, "test"),
        tuple(dict.fromkeys(regimes)),
        _students(config, protocol),
        {name: open_teacher(name, test.classes, resolution=protocol.resolution) for name in names},
        (*arms, *folders),
        folders,
        work,
        labels,
    )
    for student in examination.students:
        build_student(student, classes=examination.outputs, image_size=protocol.resolution, width=config.width)
    examination.require_arms()
    return examination


def _protocol(config: EvaluateConfig) -> Protocol:
    overrides = dict(map(parse_override, config.override))
    if config.epochs is not None:
        overrides["epochs"] = str(config.epochs)
    return overridden(PROTOCOLS[config.protocol], overrides)


def _students(config: EvaluateConfig, protocol: Protocol) -> tuple[str, ...]:
    names = config.student if config.student else MATRIX if config.matrix else (protocol.student,)
    return tuple(dict.fromkeys(names))


def _data_name(flag: str, value: str | None, origin: str | None) -> str:
    """Return an option's value, or what the run was made from where it has none.

    Raises:
        UsageError: neither is known, as of a directory of another method's images.
    """
    name = origin if value is None else value
    if name is None:
        raise UsageError(f"{flag} is needed: this directory does not say what it was made from")
    return name


def work_folder(path: Path, artifacts: Path) -> Path:
    """Return where the evaluation of a set is kept: in the run itself, or of other images in the cache."""
    if options_of(path):
        return path / "evaluation"
    # Not of the text of the path: not every path is one.
    return artifacts / "evaluation" / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
