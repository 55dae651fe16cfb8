"""One k-means problem: its points, checked and centred, and the sums every method needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from d4m_fast.errors import DataError

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

FLOAT32_TIE = 2.0**-16  # of |x||c|: well over the largest error of float32 products of up to 16,384 terms
LARGEST_SQUARE = 1e37  # scores stay finite in float32
BLOCK_ELEMENTS = 1 << 17  # float64 temporaries of 1 MB


@dataclass(frozen=True, slots=True)
class Problem:
    points: Float32  # (n, D), centred
    squares: Float64  # (n,) their squared norms
    shift: Float32  # (D,) what was subtracted
    k: int
    id: int


def generator(seed: int, key: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{key}/kmeans".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def prepare(points: Array, k: int, key: int) -> Problem:
    _check_shape(points, k, key)
    centred = np.array(points, dtype=np.float32, order="C")
    with np.errstate(invalid="ignore"):
        shift = centred.mean(axis=0, dtype=np.float64).astype(np.float32)
    if not np.isfinite(shift).all():  # one bad value anywhere makes its column's mean NaN or infinite
        raise DataError(f"class {key}: NaN or infinite values in its points")
    centred -= shift
    squares = squared_distances(centred, np.zeros((1, len(shift))), np.zeros(len(points), int))
    if squares.max() > LARGEST_SQUARE:
        raise DataError(f"class {key}: values too large for float32 distances (up to {np.abs(points).max():.3g})")
    return Problem(centred, squares, shift, k, key)


def _check_shape(points: Array, k: int, key: int) -> None:
    if points.ndim != 2 or points.shape[1] == 0:
        raise DataError(f"class {key}: points of shape {points.shape}, not (n, D)")
    if points.dtype not in (np.float16, np.float32):
        raise DataError(f"class {key}: points are {points.dtype}, not float16 or float32")
    if k < 1:
        raise DataError(f"class {key}: k = {k} is below 1")
    if k > len(points):
        raise DataError(f"class {key}: k = {k} is more than its {len(points)} points")


def given_centres(problem: Problem, start: Array) -> Float64:
    expected = (problem.k, problem.points.shape[1])
    if start.shape != expected:
        raise DataError(f"class {problem.id}: initial centres of shape {start.shape}, not {expected}")
    centres = start.astype(np.float64) - problem.shift
    if not (np.square(centres).sum(axis=1) <= LARGEST_SQUARE).all():
        raise DataError(f"class {problem.id}: NaN, infinite or too large values in its initial centres")
    return centres


def means(points: Array, labels: Int64, clusters: Int64) -> Float64:
    """(clusters, D). Gathers rows by cluster, which beats add.reduceat and a one-hot product."""
    means = np.empty((len(clusters), points.shape[1]))
    for mean, cluster in zip(means, clusters, strict=True):
        members = points[labels == cluster]
        np.add.reduce(members, axis=0, dtype=np.float64, out=mean)
        mean /= len(members)
    return means


def squared_distances(points: Float32, centroids: Float64, labels: Int64) -> Float64:
    """(n,) of each point to the centroid of its label, without cancellation."""
    distances = np.empty(len(points))
    for rows in blocks(*points.shape):
        differences = points[rows] - centroids[labels[rows]]
        distances[rows] = np.einsum("ij,ij->i", differences, differences)
    return distances


def blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // width)
    return (slice(start, start + step) for start in range(0, rows, step))
