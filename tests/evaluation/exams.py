"""Exams of a second: stripes, a narrow ConvNet, a few epochs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from fakes import stripes

from d4m_fast.config.choices import Regime
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.tasks import Exam, Task
from d4m_fast.evaluation.teachers import Teacher

QUICK = dataclasses.replace(PROTOCOLS["small"], name="quick", resolution=16, epochs=4, shift=2, stored_epochs=3)


def teacher_of(network: torch.nn.Module) -> Teacher:
    return Teacher("teacher", "sha", network.eval().requires_grad_(False), None, 16)


def untrained_teacher() -> Teacher:
    torch.manual_seed(0)
    return teacher_of(ConvNet(2, width=4, norm="batch", image_size=16))


def exam(
    work: Path,
    *,
    epochs: int = 4,
    sets: dict[str, ImageSet] | None = None,
    classes: tuple[int, ...] = (0, 1),
    teacher: Teacher | None = None,
    width: int = 8,
    **changes: object,
) -> Exam:
    return Exam(
        dataclasses.replace(QUICK, epochs=epochs, **changes),  # type: ignore[arg-type]
        width,
        2,
        classes,
        stripes(60, 99),
        {"a": stripes(15, 1)} if sets is None else sets,
        {"teacher": untrained_teacher() if teacher is None else teacher},
        work,
    )


def task(regime: Regime = "online", seed: int = 0, arm: str = "a", student: str = "convnet3") -> Task:
    return Task(arm, arm, regime, student, None if regime == "hard" else "teacher", seed)
