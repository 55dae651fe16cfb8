"""Fields of the configs as keyword arguments, for editors and type checkers.

Names and types alone: defaults, helps and bounds are the configs' own. `tests/test_api.py` compares the two. A value
may be more loosely typed than the field: `values.py` makes the field's type of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict

from d4m_fast.config.choices import (
    Coreset,
    Engine,
    ImageFormat,
    KMeansDevice,
    KMeansMethod,
    LatentKind,
    OutputForm,
    Precision,
    PresetName,
    ProtocolName,
    PrototypeKind,
    Regime,
    Scheduler,
    SmallClasses,
)

Text = str | os.PathLike[str]
Texts = Text | Sequence[Text]


class DistillOptions(TypedDict, total=False):
    """Fields of `DistillConfig`."""

    data: Text
    model: Text
    revision: str | None
    ipc: int
    small_classes: SmallClasses
    classes: str | None
    kmeans: KMeansMethod
    kmeans_on: KMeansDevice
    prototype: PrototypeKind
    latent: LatentKind
    resolution: int | None
    image_size: int | None
    format: ImageFormat
    output: OutputForm
    prompts: Text | None
    allow_unknown_prompts: bool
    preset: PresetName
    scheduler: Scheduler
    strength: float
    guidance: float
    guidance_interval: str
    steps: int
    negative_prompt: str
    seed: int
    batch_size: int | Literal["auto"]
    threads: int | None
    engine: Engine
    precision: Precision
    compile: bool
    device: str
    max_bad_fraction: float


class EvaluateOptions(TypedDict, total=False):
    """Fields of `EvaluateConfig`."""

    train_data: Text | None
    test_data: Text | None
    protocol: ProtocolName
    regime: Regime | Sequence[Regime]
    arms: str
    arm: Texts
    seeds: int
    student: Texts
    teacher: Texts
    matrix: bool
    width: int
    epochs: int | None
    override: Texts
    top_k: int | None
    labels: Texts
    coreset: Coreset
    classes: Text | None
    unchecked_teacher: bool
    device: str
    autocast: Literal["none", "bf16"]
    compile: bool
    workers: int | None
    data_parallel: bool
