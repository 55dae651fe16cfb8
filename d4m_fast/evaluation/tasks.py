"""Students to train and to test: what all of an evaluation share, each one's task, and its result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d4m_fast.config.choices import Regime
from d4m_fast.evaluation.convnet import ConvNet, quicken
from d4m_fast.evaluation.feeds import Feed, HardFeed, OnlineFeed, Share, StoredFeed
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.label_store import Label, LabelStore, labels_identity, open_or_write, write_labels
from d4m_fast.evaluation.parallel import shared_protocol
from d4m_fast.evaluation.protocols import Protocol
from d4m_fast.evaluation.stored import STORED, StoredLabels
from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.targets import ClassSelector, class_selector
from d4m_fast.evaluation.teachers import Teacher
from d4m_fast.evaluation.train import Curve, Execution, fit, own_rows
from d4m_fast.evaluation.views import to_pixels
from d4m_fast.fingerprints import derive_seed, fingerprint
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked
from d4m_fast.storage.state import STUDENT, read_state, write_state

TEST_BATCH = 100  # images at a time, so that their activations stay small


@dataclass(frozen=True, slots=True)
class Task:
    """A student to train. Equal seeds give every arm the same initial weights and augmentation draws.

    Attributes:
        set_name: which of the exam's image sets it learns from.
        generation: number of the distilled run that its set belongs to, from 0.
        teacher: name of the exam's teacher, or `STORED`; None with hard labels.
    """

    arm: str
    set_name: str
    regime: Regime
    student: str
    teacher: str | None
    seed: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class LabelTask:
    """An image set that a teacher labels once for all students of the "fixed" regime; `draw` seeds its views."""

    set_name: str
    teacher: str
    draw: int


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """Everything that the students of one evaluation share.

    A student has one output per class of the full set. With a subset of classes, its logits and the teacher's are
    cut to `classes` in training and in testing.

    Attributes:
        width: channels of a ConvNet's convolutions.
        outputs: classes of the full set.
        classes: the class ids evaluated, ascending.
        test: every test image of these classes.
        sets: images to learn from, by name.
        teachers: by name.
        top_k: logits that the "fixed" regime stores of each image; None is all.
        work: directory of results, checkpoints and stored labels.
        stored: labels that are there already, of the sets of the "fixed" regime, by name.
    """

    protocol: Protocol
    width: int
    outputs: int
    classes: tuple[int, ...]
    test: ImageSet
    sets: Mapping[str, ImageSet]
    teachers: Mapping[str, Teacher]
    work: Path
    top_k: int | None = None
    execution: Execution = field(default_factory=Execution)
    stored: Mapping[str, StoredLabels] = field(default_factory=dict)

    def select(self) -> ClassSelector:
        """Return the function that cuts logits to the classes evaluated."""
        return class_selector(self.classes, self.outputs)

    def images_per_class(self, set_name: str) -> int:
        return math.ceil(len(self.sets[set_name]) / len(self.classes))

    def batch_size(self, set_name: str) -> int:
        return self.protocol.batch_for(self.images_per_class(set_name))


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a task, in percent of the test images.

    Attributes:
        accuracy: after the last epoch.
        best: largest after any epoch that the protocol validates.
        per_class: after the last epoch, in the order of the classes evaluated.
        confusion: images of each class (row) taken for each (column), after the last epoch.
        label_bytes: of the labels that the training read; 0 where the teacher was in the loop.
    """

    task: Task
    accuracy: float
    best: float
    per_class: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]
    losses: tuple[float, ...]
    accuracies: tuple[tuple[int, float], ...]
    label_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], task: Task) -> Result:
        """Return the result of a task that `to_json` wrote."""
        return cls(
            task,
            value["accuracy"],
            value["best"],
            tuple(value["per_class"]),
            tuple(map(tuple, value["confusion"])),
            tuple(value["losses"]),
            tuple((epoch, accuracy) for epoch, accuracy in value["accuracies"]),
            value["label_bytes"],
            value["seconds"],
        )


def identity_of(exam: Exam, task: Task) -> dict[str, Any]:
    """Return everything a result depends on, but for the machine's rounding."""
    teacher_digest, processes = None, exam.execution.ranks.size
    if task.teacher == STORED:
        teacher_digest = exam.stored[task.set_name].digest
    elif task.teacher is not None:
        teacher_digest = exam.teachers[task.teacher].sha256
    return {
        "images": exam.sets[task.set_name].fingerprint,
        "test": exam.test.fingerprint,
        "protocol": exam.protocol.to_json(),
        "regime": task.regime,
        "student": task.student,
        "width": exam.width,
        "outputs": exam.outputs,
        "classes": list(exam.classes),
        "teacher": teacher_digest,
        "top_k": exam.top_k if task.regime == "fixed" else None,
        "seed": task.seed,
        "generation": task.generation if task.regime == "fixed" else None,
        "torch": torch.__version__,
        "device": exam.execution.device.type,
        "autocast": str(exam.execution.autocast),
        # Each draws its own dropout. One process alone has the identity that it had before there were several.
        **({} if processes == 1 else {"processes": processes}),
    }


def finish_task(exam: Exam, task: Task) -> Result:
    """Return what came of a task: as it was kept, or trained now from where the last attempt stands.

    Raises:
        D4MError: why it cannot be trained; what is kept stays.
        RunDirectoryError: another process trains it.
    """
    ranks = exam.execution.ranks
    place = exam.work / "students" / fingerprint(identity_of(exam, task))[:16]
    with one_thread(exam.execution.device), ExitStack() as lock:
        kept = ranks.from_first(lambda: _open_place(place, lock))
        if kept is not None:
            return Result.from_json(kept, task)
        result = _train(exam, task, place / "checkpoint.pt")
        if ranks.rank == 0:
            write_state(place / "result.json", STUDENT, result.to_json())
            files.remove(place / "checkpoint.pt")
        return result


def _open_place(place: Path, lock: ExitStack) -> dict[str, Any] | None:
    """Lock a student's folder, made if missing, and return the result that is kept there."""
    files.make_directory(place)
    lock.enter_context(locked(place))
    files.sweep(place)
    return read_state(place / "result.json", STUDENT)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute on one thread of a CPU: sums over several depend on their number, and with them every later weight."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(exam: Exam, task: Task, checkpoint: Path) -> Result:
    started_at = time.monotonic()
    student, curve, label_bytes = fitted_student(exam, task, checkpoint)
    confusion = confusion_of(student, exam)
    return Result(
        task,
        accuracy=curve.accuracies[-1][1],
        best=max(accuracy for _, accuracy in curve.accuracies),
        per_class=tuple(100 * row[i] / max(sum(row), 1) for i, row in enumerate(confusion)),
        confusion=confusion,
        losses=tuple(curve.losses),
        accuracies=tuple(curve.accuracies),
        label_bytes=label_bytes,
        seconds=time.monotonic() - started_at,
    )


def fitted_student(exam: Exam, task: Task, checkpoint: Path) -> tuple[nn.Module, Curve, int]:
    """Return a student after its last epoch, in evaluation mode, its curve, and the bytes of the labels it read."""
    device, batch_size = exam.execution.device, exam.batch_size(task.set_name)
    images = exam.sets[task.set_name].to(device)
    protocol = shared_protocol(exam.protocol, min(batch_size, len(images)), exam.execution.ranks.size)
    feed, label_bytes = _feed(exam, task, images, batch_size, partial(own_rows, protocol, exam.execution.ranks))
    # The student's seeds go into PyTorch's own generator, whose state is the caller's.
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        student = new_student(exam, task)
        curve = fit(
            student,
            feed,
            protocol,
            name=task.student,
            seed=task.seed,
            batches_per_epoch=math.ceil(len(images) / batch_size),
            select=exam.select(),
            validate=lambda network: accuracy_of(confusion_of(network, exam)),
            execution=exam.execution,
            checkpoint=checkpoint,
        )
    return student, curve, label_bytes


def new_student(exam: Exam, task: Task) -> nn.Module:
    """Return an untrained student; its weights depend on the seed alone."""
    torch.manual_seed(derive_seed(task.seed, "student"))
    student = build_student(task.student, classes=exam.outputs, image_size=exam.protocol.resolution, width=exam.width)
    execution = exam.execution
    if isinstance(student, ConvNet):
        quicken(student)
    student = student.to(execution.device)
    # But for a ConvNet on a CPU, whose group normalisation is slower in this layout than convolutions gain.
    if execution.device.type != "cpu" or not isinstance(student, ConvNet):
        student = student.to(memory_format=torch.channels_last)
    if execution.compiles:
        student.compile()
    return student


def _feed(exam: Exam, task: Task, images: ImageSet, batch_size: int, share: Share) -> tuple[Feed, int]:
    """Return the batches of a task's regime, and the bytes of the labels that they read."""
    if task.regime == "hard":
        positions = torch.searchsorted(torch.tensor(exam.classes), images.labels.cpu()).to(images.images.device)
        return HardFeed(exam.protocol, images, positions, batch_size, share), 0
    assert task.teacher is not None
    if task.regime == "online":
        return OnlineFeed(exam.protocol, images, teacher_label(exam, task.teacher), batch_size, share), 0
    labels = LabelTask(task.set_name, task.teacher, task.generation)
    store = exam.execution.ranks.from_first(partial(finish_labels, exam, labels))
    return StoredFeed(exam.protocol, images, store, batch_size, share), store.bytes


def finish_labels(exam: Exam, task: LabelTask) -> LabelStore:
    """Return the stored labels of an image set: those that are there, or those made now, as far as they are missing."""
    images = exam.sets[task.set_name].to(exam.execution.device)
    if task.teacher == STORED:
        labels, size = exam.stored[task.set_name], exam.batch_size(task.set_name)
        return labels.open(images, exam.protocol, exam.classes, size, exam.work)
    sha256 = exam.teachers[task.teacher].sha256
    identity = labels_identity(images, exam.protocol, sha256, exam.classes, task.draw, exam.top_k)

    def label_to(root: Path) -> Iterator[int]:
        label, size = teacher_label(exam, task.teacher), exam.batch_size(task.set_name)
        with one_thread(exam.execution.device):
            yield from write_labels(root, images, exam.protocol, label, identity, batch_size=size)

    return open_or_write(exam.work, images, identity, label_to)


def teacher_label(exam: Exam, teacher: str) -> Label:
    """Return a teacher as a function of pixels, its logits cut to the classes evaluated."""
    select, label = exam.select(), exam.teachers[teacher].to(exam.execution.device).labeller()

    def cut_label(pixels: torch.Tensor) -> torch.Tensor:
        with exam.execution.precision():
            return select(label(pixels))

    return cut_label


@torch.inference_mode()
def confusion_of(student: nn.Module, exam: Exam) -> tuple[tuple[int, ...], ...]:
    """Count the test images of each class (row) that a student takes for each (column), of the classes evaluated."""
    select, count, device = exam.select(), len(exam.classes), exam.execution.device
    positions = torch.searchsorted(torch.tensor(exam.classes), exam.test.labels)
    cells = torch.zeros(count * count, dtype=torch.int64)
    own = exam.execution.ranks.share(len(exam.test))
    for start in range(own.start, own.stop, TEST_BATCH):
        rows = slice(start, min(start + TEST_BATCH, own.stop))
        predicted = select(student(to_pixels(exam.test.images[rows].to(device)))).argmax(1).cpu()
        cells += torch.bincount(positions[rows] * count + predicted, minlength=count * count)
    exam.execution.ranks.add_up([cells])
    return tuple(map(tuple, cells.view(count, count).tolist()))


def accuracy_of(confusion: tuple[tuple[int, ...], ...]) -> float:
    """Return the percentage of images on the diagonal."""
    return 100 * sum(row[i] for i, row in enumerate(confusion)) / sum(map(sum, confusion))
