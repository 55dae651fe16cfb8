"""k-means of many independent problems, one per class.

Method `direct`: greedy k-means++ seeding (Arthur and Vassilvitskii, SODA 2007, with the candidate trials that
scikit-learn makes), then Lloyd's algorithm (IEEE Trans. Inf. Theory 28, 1982) until no label changes.

Numerics. Points are centred on their mean, so a large common mean costs no digits. Products are float32 matrix
products; whatever they cannot decide (two centroids at the same distance within their rounding) is decided by float64
ones, and what those cannot decide goes to the lowest index. Sums, norms and inertia are float64.

Memory per problem: a centred float32 copy of its points, an (n, k) float32 score matrix, float64 centroids.
"""

from __future__ import annotations

import hashlib
import logging
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from d4m_fast.errors import DataError, UsageError

Method = Literal["auto", "direct", "gram", "minibatch"]
Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

FLOAT32_TIE = 2.0**-16  # of |x||c|: well over the largest error of float32 products of up to 16,384 terms
FLOAT64_TIE = 1e-12
LARGEST_SQUARE = 1e37  # scores stay finite in float32
BLOCK_ELEMENTS = 1 << 17  # float64 temporaries of 1 MB

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class KMeansResult:
    """The clusters of one problem of n points in D dimensions.

    Attributes:
        centroids: (k, D) float32, the mean of each cluster's points.
        labels: (n,) int64, the cluster of each point.
        sizes: (k,) int64, all at least 1.
        inertia: sum of squared distances of the points to their centroids.
        inertia_per_cluster: (k,) float64, its parts.
        medoids: (k,) int64, the point nearest to each centroid among its cluster's; the lowest index of equals.
        iterations: assignment passes made, the last of which changed nothing unless `max_iter` came first.
    """

    centroids: Float32
    labels: Int64
    sizes: Int64
    inertia: float
    inertia_per_cluster: Float64
    medoids: Int64
    iterations: int


def kmeans(
    problems: Sequence[Array],
    k: int | Sequence[int],
    *,
    ids: Sequence[int] | None = None,
    method: Method = "auto",
    seed: int = 0,
    n_init: int = 1,
    max_iter: int = 300,
    init: Sequence[Array] | None = None,
) -> list[KMeansResult]:
    """Cluster each problem on its own; a result depends on its problem, k, id and options, never on its neighbours.

    At convergence each label is the nearest centroid's, the lowest index of equals. Stopped by `max_iter`, centroids
    are still the means of the labels. A cluster left empty takes the point farthest from its centroid, never a
    cluster's only one, so sizes are at least 1: with fewer distinct points than k (a warning is logged) some
    centroids are equal and share their points.

    Args:
        problems: arrays (n_i, D_i), float16 or float32.
        k: clusters, for all problems or for each.
        ids: names of the problems in messages and the keys of their random streams; default: their positions.
        method: "auto" is "direct"; "gram" and "minibatch" are not available yet.
        seed: the stream of a problem is seeded with SHA-256("seed/id/kmeans").
        n_init: seedings per problem; the lowest inertia is kept.
        max_iter: the most assignment passes per seeding.
        init: initial centres (k_i, D_i) of each problem, in place of k-means++.

    Raises:
        DataError: a problem is not a 2-D float16 or float32 array of finite values, k is below 1 or above n, or its
            initial centres have another shape or are not finite.
        UsageError: a method that is not available, or options that do not fit together.
    """
    _check_options(method, n_init, max_iter, init)
    count = len(problems)
    ks = _one_each("k", [operator.index(k)] * count if not isinstance(k, Sequence) else k, count)
    keys = _one_each("ids", range(count) if ids is None else ids, count)
    starts = _one_each("init", [None] * count if init is None else init, count)
    return [
        _solve(points, clusters, int(key), start, seed, n_init, max_iter)
        for points, clusters, key, start in zip(problems, ks, keys, starts, strict=True)
    ]


def _check_options(method: str, n_init: int, max_iter: int, init: object) -> None:
    if method in ("gram", "minibatch"):
        raise UsageError(f"k-means method '{method}' is not available yet; use direct")
    if method not in ("auto", "direct"):
        raise UsageError(f"no k-means method '{method}'; use direct")
    if n_init < 1 or max_iter < 1:
        raise UsageError(f"k-means needs n_init and max_iter of at least 1, not {n_init} and {max_iter}")
    if init is not None and n_init > 1:
        raise UsageError("k-means from given centres runs once: leave n_init at 1")


def _one_each(name: str, values: Sequence[Any], count: int) -> Sequence[Any]:
    if len(values) != count:
        raise UsageError(f"k-means got {count} problems but {len(values)} {name}")
    return values


# One problem


@dataclass(frozen=True, slots=True)
class _Problem:
    points: Float32  # (n, D), centred
    squares: Float64  # (n,) their squared norms
    shift: Float32  # (D,) what was subtracted
    k: int
    id: int


def _solve(points: Array, k: int, key: int, start: Array | None, seed: int, n_init: int, max_iter: int) -> KMeansResult:
    problem = _prepare(points, k, key)
    if start is not None:
        runs = [_lloyd(problem, _given_centres(problem, start), max_iter)]
    elif k in (1, len(points)):
        runs = [(np.arange(len(points)) % k, 0)]  # the optimum, in closed form
    else:
        rng = _generator(seed, key)
        runs = [_lloyd(problem, _seed_centres(problem, rng), max_iter) for _ in range(n_init)]
    results = [_result(problem, points, labels, iterations) for labels, iterations in runs]
    best = min(results, key=lambda result: result.inertia)
    _warn_of_duplicates(problem, best)
    return best


def _generator(seed: int, key: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{key}/kmeans".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _prepare(points: Array, k: int, key: int) -> _Problem:
    _check_shape(points, k, key)
    centred = np.array(points, dtype=np.float32, order="C")
    with np.errstate(invalid="ignore"):
        shift = centred.mean(axis=0, dtype=np.float64).astype(np.float32)
    if not np.isfinite(shift).all():  # one bad value anywhere makes its column's mean NaN or infinite
        raise DataError(f"class {key}: NaN or infinite values in its points")
    centred -= shift
    squares = _squared_distances(centred, np.zeros((1, len(shift))), np.zeros(len(points), int))
    if squares.max() > LARGEST_SQUARE:
        raise DataError(f"class {key}: values too large for float32 distances (up to {np.abs(points).max():.3g})")
    return _Problem(centred, squares, shift, k, key)


def _check_shape(points: Array, k: int, key: int) -> None:
    if points.ndim != 2 or points.shape[1] == 0:
        raise DataError(f"class {key}: points of shape {points.shape}, not (n, D)")
    if points.dtype not in (np.float16, np.float32):
        raise DataError(f"class {key}: points are {points.dtype}, not float16 or float32")
    if k < 1:
        raise DataError(f"class {key}: k = {k} is below 1")
    if k > len(points):
        raise DataError(f"class {key}: k = {k} is more than its {len(points)} points")


def _given_centres(problem: _Problem, start: Array) -> Float64:
    expected = (problem.k, problem.points.shape[1])
    if start.shape != expected:
        raise DataError(f"class {problem.id}: initial centres of shape {start.shape}, not {expected}")
    centres = start.astype(np.float64) - problem.shift
    if not (np.square(centres).sum(axis=1) <= LARGEST_SQUARE).all():
        raise DataError(f"class {problem.id}: NaN, infinite or too large values in its initial centres")
    return centres


def _result(problem: _Problem, points: Array, labels: Int64, iterations: int) -> KMeansResult:
    clusters = np.arange(problem.k)
    distances = _squared_distances(problem.points, _means(problem.points, labels, clusters), labels)
    per_cluster: Float64 = np.bincount(labels, weights=distances, minlength=problem.k).astype(np.float64)
    order = np.lexsort((distances, labels))  # stable: equals stay in index order
    sizes = np.bincount(labels, minlength=problem.k)
    return KMeansResult(
        # From the points as given: the centred ones have lost the last bits of points far off the common mean.
        centroids=_means(points, labels, clusters).astype(np.float32),
        labels=labels,
        sizes=sizes,
        inertia=float(per_cluster.sum()),
        inertia_per_cluster=per_cluster,
        medoids=order[np.cumsum(sizes) - sizes],
        iterations=iterations,
    )


def _warn_of_duplicates(problem: _Problem, result: KMeansResult) -> None:
    if result.inertia > 0:  # with fewer distinct points than k it is exactly 0
        return
    distinct = len({row.tobytes() for row in problem.points})
    if distinct < problem.k:
        log.warning("class %d: only %d distinct points for k = %d", problem.id, distinct, problem.k)


# Seeding


def _seed_centres(problem: _Problem, rng: np.random.Generator) -> Float64:
    """(k, D): each new centre is the best of 2 + log k points drawn in proportion to their squared distance."""
    n = len(problem.points)
    trials = 2 + int(np.log(problem.k))
    chosen = [int(rng.integers(n))]
    closest = _settled(problem, chosen[0], _distances_to(problem, chosen)[0])
    while len(chosen) < problem.k:
        cumulative = np.cumsum(closest)
        draws = np.searchsorted(cumulative, rng.random(trials) * cumulative[-1], side="right")
        candidates = np.minimum(draws, n - 1)  # draws are n when only duplicates are left
        distances = _distances_to(problem, candidates)
        best = int(np.minimum(closest, distances).sum(axis=1).argmin())
        chosen.append(int(candidates[best]))
        closest = np.minimum(closest, _settled(problem, chosen[-1], distances[best]))
    return problem.points[chosen].astype(np.float64)


def _distances_to(problem: _Problem, candidates: Sequence[int] | Int64) -> Float64:
    """(candidates, n): squared distances, to the precision of a float32 product."""
    products = (problem.points @ problem.points[candidates].T).T
    return np.maximum(problem.squares - 2.0 * products + problem.squares[candidates][:, None], 0)


def _settled(problem: _Problem, chosen: int, distances: Float64) -> Float64:
    """The distances to the chosen point, exact where rounding drowns them: duplicates are at 0."""
    near = np.flatnonzero(distances <= FLOAT32_TIE * (problem.squares + problem.squares[chosen]))
    centre = problem.points[chosen][None].astype(np.float64)
    settled = distances.copy()
    settled[near] = _squared_distances(problem.points[near], centre, np.zeros(len(near), int))
    return settled


# Lloyd


def _lloyd(problem: _Problem, centroids: Float64, max_iter: int) -> tuple[Int64, int]:
    """Labels at convergence or after `max_iter` passes, and the passes made. Overwrites `centroids`.

    Only clusters that gained or lost a point get new means and scores: after a few passes, a small part of them.
    """
    scores = np.empty((len(problem.points), problem.k), np.float32)
    changed = np.arange(problem.k)
    previous = np.full(len(problem.points), -1)
    for iteration in range(1, max_iter + 1):
        _score(problem, centroids, changed, scores)
        labels = _fill_empty(problem, centroids, _nearest(problem, centroids, scores))
        moved = labels != previous
        if not moved.any():
            return labels, iteration
        changed = np.union1d(labels[moved], previous[moved])
        changed = changed[changed >= 0]
        centroids[changed] = _means(problem.points, labels, changed)
        previous = labels
    return previous, max_iter


def _score(problem: _Problem, centroids: Float64, columns: Int64, scores: Float32) -> None:
    """Set these columns of the (n, k) scores, |x - c|^2 - |x|^2 to float32 precision."""
    selected = centroids[columns]
    products = problem.points @ selected.astype(np.float32).T
    products *= -2
    products += np.square(selected).sum(axis=1).astype(np.float32)
    scores[:, columns] = products


def _nearest(problem: _Problem, centroids: Float64, scores: Float32) -> Int64:
    """(n,) the nearest centroid of each point, the lowest index of equals."""
    largest = np.square(centroids).sum(axis=1).max()
    scale = np.sqrt(problem.squares * largest) + largest
    limit = (scores.min(axis=1) + FLOAT32_TIE * scale).astype(np.float32)
    candidates = scores <= limit[:, None]
    labels: Int64 = candidates.argmax(axis=1)
    unclear = np.flatnonzero(np.count_nonzero(candidates, axis=1) > 1)
    for block in _blocks(len(unclear), max(centroids.shape)):
        rows = unclear[block]
        labels[rows] = _nearest_exactly(problem.points[rows], centroids, scale[rows])
    return labels


def _nearest_exactly(points: Float32, centroids: Float64, scale: Float64) -> Int64:
    scores = np.square(centroids).sum(axis=1) - 2.0 * (points.astype(np.float64) @ centroids.T)
    limit = scores.min(axis=1) + FLOAT64_TIE * scale
    nearest: Int64 = (scores <= limit[:, None]).argmax(axis=1)
    return nearest


def _fill_empty(problem: _Problem, centroids: Float64, labels: Int64) -> Int64:
    """Give each empty cluster the point farthest from its centroid; the lowest index of equals, never an only one."""
    sizes = np.bincount(labels, minlength=problem.k)
    empty = np.flatnonzero(sizes == 0).tolist()
    if not empty:
        return labels
    distances = _squared_distances(problem.points, centroids, labels)
    for point in np.argsort(-distances, kind="stable"):
        if empty and sizes[labels[point]] > 1:
            sizes[labels[point]] -= 1
            labels[point] = empty.pop(0)
    return labels


def _means(points: Array, labels: Int64, clusters: Int64) -> Float64:
    """(clusters, D). Gathers rows by cluster, which beats add.reduceat and a one-hot product."""
    means = np.empty((len(clusters), points.shape[1]))
    for mean, cluster in zip(means, clusters, strict=True):
        members = points[labels == cluster]
        np.add.reduce(members, axis=0, dtype=np.float64, out=mean)
        mean /= len(members)
    return means


def _squared_distances(points: Float32, centroids: Float64, labels: Int64) -> Float64:
    """(n,) of each point to the centroid of its label, without cancellation."""
    distances = np.empty(len(points))
    for rows in _blocks(*points.shape):
        differences = points[rows] - centroids[labels[rows]]
        distances[rows] = np.einsum("ij,ij->i", differences, differences)
    return distances


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // width)
    return (slice(start, start + step) for start in range(0, rows, step))
