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
from d4m_fast.fingerprints import derive_seed

TEST_BATCH = 100

Loss = Callable[[ConvNet, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """What all students of one evaluation share.

    A student has one output per class of the full set. With a subset of classes, its logits and the teacher's are
    cut to `classes` in training and in testing.

    Attributes:
        width: channels of the student's convolutions.
        outputs: classes of the full set.
        classes: the class ids evaluated, ascending.
        test: every test image of these classes.
        teacher: needed for soft labels.
    """

    protocol: Protocol
    width: int
    outputs: int
    classes: tuple[int, ...]
    test: ImageSet
    teacher: ConvNet | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One student to train. Equal seeds give every arm the same initial weights and augmentation draws."""

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


def fitted_student(exam: Exam, task: Task) -> ConvNet:
    """The student after its last epoch, in evaluation mode; see `train_student`."""
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(task.seed, "student"))
        student = quicken(ConvNet(exam.outputs, width=exam.width, image_size=exam.protocol.image_size))
        _fit(student, exam, task)
        return student.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(student: ConvNet, exam: Exam, task: Task) -> None:
    protocol, labels = exam.protocol, positions(exam, task.train.labels)
    loss = _soft(exam) if task.label_kind == "soft" else _hard(exam)
    generator = torch.Generator().manual_seed(derive_seed(task.seed, "augment"))
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


def _soft(exam: Exam) -> Loss:
    if exam.teacher is None:
        raise ValueError("soft labels need a teacher")
    label, cut, temperature = labeller(exam.teacher), _cut(exam), exam.protocol.temperature
    return lambda student, pixels, _: soft_loss(cut(student(pixels)), cut(label(pixels)), temperature)


def _hard(exam: Exam) -> Loss:
    cut = _cut(exam)
    return lambda student, pixels, labels: F.cross_entropy(cut(student(pixels)), labels)


@torch.inference_mode()
def accuracy(student: nn.Module, exam: Exam) -> float:
    """Percent of the test images whose class has the largest logit among the classes evaluated."""
    cut, labels = _cut(exam), positions(exam, exam.test.labels)
    batches = zip(torch.split(exam.test.images, TEST_BATCH), torch.split(labels, TEST_BATCH), strict=True)
    right = sum(int((cut(student(to_pixels(images))).argmax(1) == truth).sum()) for images, truth in batches)
    return 100 * right / len(labels)


def positions(exam: Exam, labels: torch.Tensor) -> torch.Tensor:
    """Class ids (N,) as positions among the classes evaluated."""
    return torch.searchsorted(torch.tensor(exam.classes), labels)


def _cut(exam: Exam) -> Callable[[torch.Tensor], torch.Tensor]:
    if exam.classes == tuple(range(exam.outputs)):
        return lambda logits: logits[:, : exam.outputs]
    columns = torch.tensor(exam.classes)
    return lambda logits: logits[:, columns]


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.float() / 255


def quicken(student: ConvNet) -> ConvNet:
    """Make the blocks save a copy (ReLU in place) and pool faster than PyTorch does on a CPU; outputs stay the same."""
    for block in student.blocks:
        layers = cast(nn.Sequential, block)
        layers[2] = nn.ReLU(inplace=True)
        layers[3] = HalvingPool()
    return student


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
