"""The values that pass between stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class. `id` is its index in the full set and the key everywhere; `prompt` is text for the model only."""

    id: int
    folder: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Item:
    """One real image: its class, its rank in the class's sorted file list, and where it comes from."""

    class_id: int
    rank: int
    origin: str


class Source(Protocol):
    """A labelled set of real images, read in its own order.

    `fingerprint` changes when any image, label or class does. `read` returns an RGB image of 8 bits per channel,
    or raises `DataError` with the reason when the image is damaged. `notes` says what was left out when it was listed,
    one line for each kind.
    """

    @property
    def classes(self) -> Sequence[ClassInfo]: ...

    @property
    def items(self) -> Sequence[Item]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def read(self, item: Item) -> Image.Image: ...


def by_class(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Items of each class, in the order of their ranks."""
    classes: dict[int, list[Item]] = {}
    for item in items:
        classes.setdefault(item.class_id, []).append(item)
    return {class_id: sorted(members, key=lambda item: item.rank) for class_id, members in classes.items()}


@dataclass(frozen=True, slots=True)
class Prototypes:
    """The k prototypes of one class.

    Attributes:
        centroids: (k, C, h, w) float32, scaled by the VAE's scaling factor.
        sizes: (k,) images in each cluster.
        inertia_share: (k,) each cluster's part of the class's within-cluster sum of squares; sums to 1 or is all 0.
        nearest: origin of the real image nearest to each prototype.
    """

    info: ClassInfo
    centroids: np.ndarray
    sizes: np.ndarray
    inertia_share: np.ndarray
    nearest: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One distilled image, (H, W, 3) uint8, and what made it."""

    info: ClassInfo
    index: int
    seed: int
    cluster_size: int
    inertia_share: float
    nearest: str
    pixels: np.ndarray
