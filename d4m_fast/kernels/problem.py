"""A k-means problem: its points, checked, centred where that saves digits, and the sums every method needs."""

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
# Points whose common mean has more than this part of their mean square are centred: it would cost them digits.
COMMON = 0.5


@dataclass(frozen=True, slots=True)
class Problem:
    """The points of a class, and how many clusters to make of them.

    Attributes:
        points: (n, D), less `shift`; the caller's own array where nothing was subtracted or converted.
        squares: (n,) their squared norms.
        shift: (D,) subtracted from the caller's points.
        original: (n, D) float16 or float32, the caller's points.
    """

    points: Float32
    squares: Float64
    shift: Float32
    original: Array
    k: int
    id: int

    def sizes(self, labels: Int64) -> Int64:
        """Count the points of each cluster, (k,)."""
        return np.bincount(labels, minlength=self.k)


def generator(seed: int, problem_id: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{problem_id}/kmeans".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def prepare(points: Any, k: int, problem_id: int) -> Problem:
    """Check and centre a problem.

    Args:
        points: (n, D) float16 or float32: an array, a CPU tensor or anything else NumPy can look at without a copy.

    Raises:
        DataError: names the class and what is wrong with it.
    """
    original = _array(points, "points", problem_id)
    check_shape(original, k, problem_id)
    rows = np.ascontiguousarray(original, np.float32)
    with np.errstate(invalid="ignore"):
        squares = squared_norms(rows)
    if not np.isfinite(squares).all():
        raise DataError(f"class {problem_id}: NaN or infinite values in its points")
    if squares.max() > LARGEST_SQUARE:
        raise DataError(f"class {problem_id}: values too large for float32 distances (up to {np.abs(rows).max():.3g})")
    # Products of points far off the origin lose the digits in which the points differ.
    shift: Float32 = rows.mean(axis=0)
    if np.square(shift, dtype=np.float64).sum() > COMMON * squares.mean():
        rows = rows - shift
        squares = squared_norms(rows)
    else:
        shift = np.zeros_like(shift)
    return Problem(rows, squares, shift, original, k, problem_id)


def _array(values: Any, noun: str, problem_id: int) -> Array:
    try:
        return np.from_dlpack(values) if hasattr(values, "__dlpack__") else np.asarray(values)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise DataError(
            f"class {problem_id}: its {noun} are no array in memory that NumPy can read: {error}"
        ) from error


def check_shape(points: Any, k: int, problem_id: int) -> None:
    """Check the shape and type of points, in memory or on a device, and that k fits them.

    Raises:
        DataError: names the class and what is wrong with it.
    """
    if points.ndim != 2 or points.shape[1] == 0:
        raise DataError(f"class {problem_id}: points of shape {points.shape}, not (n, D)")
    if points.dtype not in (np.float16, np.float32):
        raise DataError(f"class {problem_id}: points are {points.dtype}, not float16 or float32")
    if k < 1:
        raise DataError(f"class {problem_id}: k = {k} is below 1")
    if k > len(points):
        raise DataError(f"class {problem_id}: k = {k} is more than its {len(points)} points")


def initial_centres(problem: Problem, start: Any) -> Float64:
    """Check the caller's initial centres and shift them as the points were.

    Raises:
        DataError: names the class and what is wrong with them.
    """
    expected = (problem.k, problem.points.shape[1])
    centres = _array(start, "initial centres", problem.id)
    if centres.shape != expected:
        raise DataError(f"class {problem.id}: initial centres of shape {centres.shape}, not {expected}")
    shifted = centres.astype(np.float64) - problem.shift
    if not (np.square(shifted).sum(axis=1) <= LARGEST_SQUARE).all():
        raise DataError(f"class {problem.id}: NaN, infinite or too large values in its initial centres")
    return shifted


def sum_rows(rows: Array) -> Float64:
    """Sum rows in float64, (width,)."""
    total: Float64 = np.add.reduce(rows, axis=0, dtype=np.float64)
    return total


def sums(problem: Problem, labels: Int64, clusters: Int64) -> Float64:
    """Sum the points of some clusters, (clusters, D)."""
    # Rows gathered by cluster: faster than add.reduceat and than a product with a one-hot matrix.
    totals = np.empty((len(clusters), problem.points.shape[1]))
    for total, cluster in zip(totals, clusters, strict=True):
        total[:] = sum_rows(problem.points[labels == cluster])
    return totals


def means(problem: Problem, labels: Int64) -> Float64:
    """Return the means of all clusters, none of them empty, (k, D)."""
    return sums(problem, labels, np.arange(problem.k)) / problem.sizes(labels)[:, None]


def squared_norms(rows: Float32, centre: Float64 | None = None) -> Float64:
    """Return squared distances of rows from a centre, or from the origin, (n,), without cancellation."""
    norms = np.empty(len(rows))
    for block in blocks(*rows.shape):
        differences = rows[block].astype(np.float64) if centre is None else rows[block] - centre
        norms[block] = np.vecdot(differences, differences)
    return norms


def squared_distances(points: Float32, centroids: Float64, labels: Int64) -> Float64:
    """Return squared distances of the points to the centroids of their labels, (n,), without cancellation."""
    distances = np.empty(len(points))
    for rows in blocks(*points.shape):
        differences = points[rows] - centroids[labels[rows]]
        distances[rows] = np.vecdot(differences, differences)
    return distances


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows small enough that their float64 differences stay in the cache."""
    step = max(1, BLOCK_ELEMENTS // width)
    return (slice(start, start + step) for start in range(0, rows, step))
