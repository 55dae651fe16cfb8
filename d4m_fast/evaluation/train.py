"""Training one student: the same recipe for every arm, deterministic on one thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from d4m_fast.config.choices import LabelKind
from d4m_fast.evaluation.augment import cutmix, flip, shift
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.protocols import Protocol
from d4m_fast.evaluation.relabel import labeller, soft_loss
from d4m_fast.evaluation.students import STUDENTS
from d4m_fast.fingerprints import derive_seed

TEST_BATCH = 100  # images at a time, so that their activations stay small

Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """Everything that the students of one evaluation share.

    A student has one output per class of the full set. With a subset of classes, its logits and the teacher's are
    cut to `classes` in training and in testing.

    Attributes:
        width: channels of the student's convolutions.
        outputs: classes of the full set.
        classes: the class ids evaluated, ascending.
        test: every test image of these classes.
        teacher: needed for soft labels.
        student: which of `STUDENTS` is trained.
    """

    protocol: Protocol
    width: int
    outputs: int
    classes: tuple[int, ...]
    test: ImageSet
    teacher: ConvNet | None = None
    student: str = "convnet3"


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A student to train. Equal seeds give every arm the same initial weights and augmentation draws."""

    arm: str
    label_kind: LabelKind
    seed: int
    train: ImageSet


def train_student(exam: Exam, task: Task) -> float:
    """Train a student from scratch and return its last-epoch accuracy on the test set, in percent.

    Depends on nothing but its arguments: it runs on one thread, and leaves PyTorch's threads and random state alone.

    Raises:
        ValueError: soft labels without a teacher.
    """
    with _one_thread():
        return accuracy(fitted_student(exam, task), exam)


def fitted_student(exam: Exam, task: Task) -> nn.Module:
    """Return the student after its last epoch, in evaluation mode; see `train_student`."""
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(task.seed, "student"))
        student = STUDENTS[exam.student].build(exam.outputs, exam.protocol.image_size, exam.width)
        if isinstance(student, ConvNet):
            quicken(student)
        _fit(student, exam, task)
        return student.eval()


# Sums over several threads depend on their number, and with them every later weight.
@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(student: nn.Module, exam: Exam, task: Task) -> None:
    protocol, labels = exam.protocol, positions(exam, task.train.labels)
    loss = _loss(exam, task.label_kind)
    # Apart from the stream of the initial weights, whose length depends on the width of the student.
    generator = torch.Generator().manual_seed(derive_seed(task.seed, "augment"))
    # Fused: one call for all parameters instead of a dozen for each of them.
    optimiser = torch.optim.AdamW(student.parameters(), protocol.lr, weight_decay=protocol.weight_decay, fused=True)
    steps = protocol.epochs * math.ceil(len(labels) / protocol.batch_size)
    for step, index in enumerate(_batches(len(labels), protocol, generator)):
        optimiser.param_groups[0]["lr"] = protocol.lr * (1 + math.cos(math.pi * step / steps)) / 2
        pixels = to_pixels(task.train.images[index])
        pixels = flip(shift(pixels, protocol.shift, generator), generator)
        if task.label_kind == "soft":
            pixels = cutmix(pixels, generator)
        optimiser.zero_grad()
        loss(student, pixels, labels[index]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _batches(n: int, protocol: Protocol, generator: torch.Generator) -> Iterator[torch.Tensor]:
    for _ in range(protocol.epochs):
        yield from torch.split(torch.randperm(n, generator=generator), protocol.batch_size)


def _loss(exam: Exam, label_kind: LabelKind) -> Loss:
    select, temperature = _class_selector(exam), exam.protocol.temperature
    if label_kind == "hard":
        return lambda student, pixels, labels: F.cross_entropy(select(student(pixels)), labels)
    if exam.teacher is None:
        raise ValueError("soft labels need a teacher")
    label = labeller(exam.teacher)
    return lambda student, pixels, _: soft_loss(select(student(pixels)), select(label(pixels)), temperature)


@torch.inference_mode()
def accuracy(student: nn.Module, exam: Exam) -> float:
    """Return the percentage of test images whose class has the largest logit among the classes evaluated."""
    select, labels = _class_selector(exam), positions(exam, exam.test.labels)
    correct = 0
    for start in range(0, len(labels), TEST_BATCH):
        logits = student(to_pixels(exam.test.images[start : start + TEST_BATCH]))
        correct += int((select(logits).argmax(1) == labels[start : start + TEST_BATCH]).sum())
    return 100 * correct / len(labels)


def positions(exam: Exam, labels: torch.Tensor) -> torch.Tensor:
    """Convert class ids (N,) to positions among the classes evaluated."""
    return torch.searchsorted(torch.tensor(exam.classes), labels)


def _class_selector(exam: Exam) -> Callable[[torch.Tensor], torch.Tensor]:
    # A slice of all columns is a view; indexing copies the logits, in training twice per step.
    if exam.classes == tuple(range(exam.outputs)):
        return lambda logits: logits[:, : exam.outputs]
    columns = torch.tensor(exam.classes)
    return lambda logits: logits[:, columns]


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 to float32 in [0, 1]."""
    return images.float() / 255


def quicken(student: ConvNet) -> None:
    """Make the blocks save a copy (ReLU in place) and pool faster than PyTorch does on a CPU; outputs stay the same."""
    for block in student.blocks:
        layers = cast(nn.Sequential, block)
        # Safe in place: normalisation needs its input in the backward pass, not its output.
        layers[2] = nn.ReLU(inplace=True)
        layers[3] = HalvingPool()


class HalvingPool(nn.Module):
    """2x2 average pooling of (N, C, H, W), an odd last row or column dropped; faster than `AvgPool2d` on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        return cast(torch.Tensor, _Halve.apply(x[:, :, :height, :width]))


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        rows = x[:, :, 0::2] + x[:, :, 1::2]
        return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        wide = (grads[0] * 0.25).repeat_interleave(2, -1)
        n, channels, height, width = wide.shape
        tall = wide.unsqueeze(3).expand(n, channels, height, 2, width)
        return tall.reshape(n, channels, 2 * height, width)
