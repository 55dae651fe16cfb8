"""One k-means problem: its points, checked, centred where that saves digits, and the sums every method needs."""

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
COMMON = 0.5
"""Points whose common mean has more than this part of their mean square are centred: it would cost them digits."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One class to cluster.

    Attributes:
        points: (n, D), less `shift`; the caller's own array where nothing was subtracted or converted.
        squares: (n,) their squared norms.
        shift: (D,) subtracted from the points as given.
        given: (n, D) float16 or float32, the points as given.
        weights: (n,), or None where all weigh 1.
    """

    points: Float32
    squares: Float64
    shift: Float32
    given: Array
    weights: Float64 | None
    k: int
    id: int

    def masses(self, labels: Int64) -> Float64:
        """(k,) summed weights of the clusters."""
        return np.bincount(labels, weights=self.weights, minlength=self.k).astype(np.float64)

    def weights_of(self, members: Array | slice) -> Float64 | None:
        return None if self.weights is None else self.weights[members]


def generator(seed: int, key: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{key}/kmeans".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def prepare(points: Any, k: int, key: int, weights: Any = None) -> Problem:
    """Check and centre a problem.

    Args:
        points: (n, D) float16 or float32: an array, a CPU tensor or anything else NumPy can look at without a copy.
        weights: (n,) positive, or None.

    Raises:
        DataError: names the class and what is wrong with it.
    """
    given = _array(points, "points", key)
    check_shape(given, k, key)
    rows = np.ascontiguousarray(given, np.float32)
    squares = _finite_squares(rows, key)
    shift: Float32 = rows.mean(axis=0)
    if np.square(shift, dtype=np.float64).sum() > COMMON * squares.mean():
        rows = rows - shift
        squares = squared_norms(rows)
    else:
        shift = np.zeros_like(shift)
    return Problem(rows, squares, shift, given, _checked_weights(weights, len(rows), key), k, key)


def _array(values: Any, what: str, key: int) -> Array:
    try:
        return np.from_dlpack(values) if hasattr(values, "__dlpack__") else np.asarray(values)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise DataError(f"class {key}: its {what} are no array in memory that NumPy can read: {error}") from error


def check_shape(points: Any, k: int, key: int) -> None:
    """Of an array in memory or on a device.

    Raises:
        DataError: names the class and what is wrong with it.
    """
    if points.ndim != 2 or points.shape[1] == 0:
        raise DataError(f"class {key}: points of shape {points.shape}, not (n, D)")
    if points.dtype not in (np.float16, np.float32):
        raise DataError(f"class {key}: points are {points.dtype}, not float16 or float32")
    if k < 1:
        raise DataError(f"class {key}: k = {k} is below 1")
    if k > len(points):
        raise DataError(f"class {key}: k = {k} is more than its {len(points)} points")


def _finite_squares(points: Float32, key: int) -> Float64:
    with np.errstate(invalid="ignore"):
        squares = squared_norms(points)
    if not np.isfinite(squares).all():
        raise DataError(f"class {key}: NaN or infinite values in its points")
    if squares.max() > LARGEST_SQUARE:
        raise DataError(f"class {key}: values too large for float32 distances (up to {np.abs(points).max():.3g})")
    return squares


def _checked_weights(weights: Any, n: int, key: int) -> Float64 | None:
    if weights is None:
        return None
    values = _array(weights, "weights", key)
    if values.shape != (n,):
        raise DataError(f"class {key}: weights of shape {values.shape}, not ({n},)")
    if not (np.isfinite(values) & (values > 0)).all():
        raise DataError(f"class {key}: weights must be positive and finite; leave out points that should not count")
    return values.astype(np.float64)


def given_centres(problem: Problem, start: Any) -> Float64:
    expected = (problem.k, problem.points.shape[1])
    centres = _array(start, "initial centres", problem.id)
    if centres.shape != expected:
        raise DataError(f"class {problem.id}: initial centres of shape {centres.shape}, not {expected}")
    shifted = centres.astype(np.float64) - problem.shift
    if not (np.square(shifted).sum(axis=1) <= LARGEST_SQUARE).all():
        raise DataError(f"class {problem.id}: NaN, infinite or too large values in its initial centres")
    return shifted


def weighted_sum(rows: Array, weights: Float64 | None) -> Float64:
    """(width,) the sum of some rows, in float64."""
    total: Float64 = np.add.reduce(rows, axis=0, dtype=np.float64) if weights is None else weights @ rows
    return total


def sums(problem: Problem, labels: Int64, clusters: Int64) -> Float64:
    """(clusters, D), weighted. Gathers rows by cluster, which beats add.reduceat and a one-hot product."""
    totals = np.empty((len(clusters), problem.points.shape[1]))
    for total, cluster in zip(totals, clusters, strict=True):
        members = labels == cluster
        total[:] = weighted_sum(problem.points[members], problem.weights_of(members))
    return totals


def means(problem: Problem, labels: Int64) -> Float64:
    """(k, D) of all clusters, none of them empty."""
    return sums(problem, labels, np.arange(problem.k)) / problem.masses(labels)[:, None]


def squared_norms(rows: Float32, centre: Float64 | None = None) -> Float64:
    """(n,) squared distances of rows from a centre, or from the origin, without cancellation."""
    found = np.empty(len(rows))
    for block in blocks(*rows.shape):
        differences = rows[block].astype(np.float64) if centre is None else rows[block] - centre
        found[block] = np.vecdot(differences, differences)
    return found


def squared_distances(points: Float32, centroids: Float64, labels: Int64) -> Float64:
    """(n,) of each point to the centroid of its label, without cancellation."""
    distances = np.empty(len(points))
    for rows in blocks(*points.shape):
        differences = points[rows] - centroids[labels[rows]]
        distances[rows] = np.vecdot(differences, differences)
    return distances


def blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // width)
    return (slice(start, start + step) for start in range(0, rows, step))
