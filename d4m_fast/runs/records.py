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
    """

    info: ClassInfo
    centroids: np.ndarray
    sizes: np.ndarray
    inertia_share: np.ndarray
    nearest: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A distilled image, (H, W, 3) uint8, and what it was made from."""

    info: ClassInfo
    index: int
    seed: int
    cluster_size: int
    inertia_share: float
    nearest: str
    pixels: np.ndarray
