"""Records that the stages make of a class: prototypes, then samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d4m_fast.sources.records import ClassInfo


@dataclass(frozen=True, slots=True)
class Prototypes:
    """Prototypes of one class, k of them.

    Attributes:
        centroids: (k, C, h, w) float32, scaled by the VAE's scaling factor.
        sizes: (k,) images in each cluster.
        inertia_share: (k,) each cluster's part of the class's within-cluster sum of squares; sums to 1 or is all 0.
        nearest: origin of the real image nearest to each prototype.
        class_images: usable images of a class that has fewer than there should be prototypes; None of other classes.
            Each is then a prototype, in turn.
    """

    info: ClassInfo
    centroids: np.ndarray
    sizes: np.ndarray
    inertia_share: np.ndarray
    nearest: tuple[str, ...]
    class_images: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A distilled image, (H, W, 3) uint8, and what it was made from; `class_images` is that of its prototypes."""

    info: ClassInfo
    index: int
    seed: int
    cluster_size: int
    inertia_share: float
    nearest: str
    pixels: np.ndarray
    class_images: int | None = None
