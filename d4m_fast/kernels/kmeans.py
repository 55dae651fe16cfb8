"""k-means of many independent problems, one per class.

Methods, each in the module of its name: `direct` on the points, `gram` on their inner products, `minibatch` as D4M's
official code. `auto` takes `gram` where its cost model says so, `direct` elsewhere.

Numerics. Points are centred on their mean, so a large common mean costs no digits. Products are float32 matrix
products; whatever they cannot decide (two centroids at the same distance within their rounding) is decided by float64
ones, and what those cannot decide goes to the lowest index. Sums, norms and inertia are float64. What Gram space finds
is gone over by `direct` until no label changes, so that the same holds for it.

Memory per problem: a centred float32 copy of its points, an (n, k) float32 score matrix, float64 centroids; in Gram
space an (n, n) float32 and a (k, n) float64 matrix.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from d4m_fast.errors import UsageError
from d4m_fast.kernels import direct, gram
from d4m_fast.kernels.minibatch import official_centres
from d4m_fast.kernels.problem import (
    Array,
    Float32,
    Float64,
    Int64,
    Problem,
    generator,
    given_centres,
    means,
    prepare,
    squared_distances,
)

Method = Literal["auto", "direct", "gram", "minibatch"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class KMeansResult:
    """The clusters of one problem of n points in D dimensions.

    Attributes:
        centroids: (k, D) float32, the mean of each cluster's points; of "minibatch", what its updates left there.
        labels: (n,) int64, the cluster of each point.
        sizes: (k,) int64, all at least 1, but of "minibatch".
        inertia: sum of squared distances of the points to their centroids.
        inertia_per_cluster: (k,) float64, its parts.
        medoids: (k,) int64, the point nearest to each centroid among its cluster's (of "minibatch": among all); the
            lowest index of equals.
        iterations: assignment passes made, the last of which changed nothing unless `max_iter` came first.
    """

    centroids: Float32
    labels: Int64
    sizes: Int64
    inertia: float
    inertia_per_cluster: Float64
    medoids: Int64
    iterations: int


@dataclass(frozen=True, slots=True)
class _Options:
    method: Method
    seed: int
    n_init: int
    max_iter: int
    refine: bool


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
    refine: bool = True,
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
        method: how, see above.
        seed: the stream of a problem is seeded with SHA-256("seed/id/kmeans").
        n_init: seedings per problem; the lowest inertia is kept.
        max_iter: the most assignment passes per seeding.
        init: initial centres (k_i, D_i) of each problem, in place of k-means++.
        refine: after Lloyd, move single points while that lowers the inertia (Hartigan); in Gram space only.

    Raises:
        DataError: a problem is not a 2-D float16 or float32 array of finite values, k is below 1 or above n, or its
            initial centres have another shape or are not finite.
        UsageError: no such method, or options that do not fit together.
        PreflightError: "minibatch" without scikit-learn.
    """
    _check_options(method, n_init, max_iter, init)
    count = len(problems)
    ks = _one_each("k", [operator.index(k)] * count if not isinstance(k, Sequence) else k, count)
    keys = _one_each("ids", range(count) if ids is None else ids, count)
    starts = _one_each("init", [None] * count if init is None else init, count)
    return [
        _solve(points, clusters, int(key), start, _Options(method, seed, n_init, max_iter, refine))
        for points, clusters, key, start in zip(problems, ks, keys, starts, strict=True)
    ]


def _check_options(method: str, n_init: int, max_iter: int, init: object) -> None:
    if method not in ("auto", "direct", "gram", "minibatch"):
        raise UsageError(f"no k-means method '{method}'; use auto, direct, gram or minibatch")
    if method == "minibatch" and (init is not None or n_init > 1):
        raise UsageError("k-means method 'minibatch' runs once and from its own centres")
    if n_init < 1 or max_iter < 1:
        raise UsageError(f"k-means needs n_init and max_iter of at least 1, not {n_init} and {max_iter}")
    if init is not None and n_init > 1:
        raise UsageError("k-means from given centres runs once: leave n_init at 1")


def _one_each(name: str, values: Sequence[Any], count: int) -> Sequence[Any]:
    if len(values) != count:
        raise UsageError(f"k-means got {count} problems but {len(values)} {name}")
    return values


def _solve(points: Array, k: int, key: int, start: Array | None, options: _Options) -> KMeansResult:
    problem = prepare(points, k, key)
    if options.method == "minibatch":
        return _official(problem, points, generator(options.seed, key))
    if start is None and k in (1, len(points)):
        runs = [(np.arange(len(points)) % k, 0)]  # the optimum, in closed form
    elif _in_gram_space(problem, options):
        runs = _gram_runs(problem, start, options)
    else:
        runs = _direct_runs(problem, start, options)
    results = [_result(problem, points, labels, iterations) for labels, iterations in runs]
    best = min(results, key=lambda result: result.inertia)
    _warn_of_duplicates(problem, best)
    return best


def _in_gram_space(problem: Problem, options: _Options) -> bool:
    if options.method != "auto":
        return options.method == "gram"
    n, d = problem.points.shape
    return gram.gram_pays(n, d, problem.k, refine=options.refine)


def _direct_runs(problem: Problem, start: Array | None, options: _Options) -> list[tuple[Int64, int]]:
    if start is not None:
        return [direct.lloyd(problem, given_centres(problem, start), options.max_iter)]
    rng = generator(options.seed, problem.id)
    seeds = (direct.seed_centres(problem, rng) for _ in range(options.n_init))
    return [direct.lloyd(problem, centres, options.max_iter) for centres in seeds]


def _gram_runs(problem: Problem, start: Array | None, options: _Options) -> list[tuple[Int64, int]]:
    products, rng = gram.gram_matrix(problem), generator(options.seed, problem.id)
    runs = []
    for _ in range(options.n_init):
        if start is not None:
            labels, passes = direct.lloyd(problem, given_centres(problem, start), 1)
        else:
            labels, passes = gram.seed_labels(problem, products, rng), 0
        runs.append(_gram_run(problem, products, labels, passes, options))
    return runs


def _gram_run(problem: Problem, products: Float32, labels: Int64, passes: int, options: _Options) -> tuple[Int64, int]:
    """Lloyd and Hartigan in Gram space, then Lloyd on the points, which settles what float32 products cannot."""
    if passes < options.max_iter:
        labels, more = gram.lloyd(problem, products, labels, options.max_iter - passes)
        passes += more
    if options.refine:
        labels, sweeps = gram.hartigan(problem, products, labels)
        passes += sweeps
    if passes >= options.max_iter:
        return labels, passes
    centroids = means(problem.points, labels, np.arange(problem.k))
    labels, more = direct.lloyd(problem, centroids, options.max_iter - passes)
    return labels, passes + more


def _official(problem: Problem, points: Array, rng: np.random.Generator) -> KMeansResult:
    """Centres as the official code leaves them; labels, sizes and inertia of all points to them."""
    official = official_centres(points, problem.k, rng)
    centres = official - problem.shift
    scores = np.empty((len(problem.points), problem.k), np.float32)
    direct.score(problem, centres, np.arange(problem.k), scores)
    labels = direct.nearest(problem, centres, scores)
    distances = squared_distances(problem.points, centres, labels)
    return KMeansResult(
        centroids=official.astype(np.float32),
        labels=labels,
        sizes=np.bincount(labels, minlength=problem.k),
        inertia=float(distances.sum()),
        inertia_per_cluster=np.bincount(labels, weights=distances, minlength=problem.k).astype(np.float64),
        medoids=(scores + problem.squares[:, None]).argmin(axis=0),
        iterations=len(problem.points) // problem.k,
    )


def _result(problem: Problem, points: Array, labels: Int64, iterations: int) -> KMeansResult:
    clusters = np.arange(problem.k)
    distances = squared_distances(problem.points, means(problem.points, labels, clusters), labels)
    per_cluster: Float64 = np.bincount(labels, weights=distances, minlength=problem.k).astype(np.float64)
    order = np.lexsort((distances, labels))  # stable: equals stay in index order
    sizes = np.bincount(labels, minlength=problem.k)
    return KMeansResult(
        # From the points as given: the centred ones have lost the last bits of points far off the common mean.
        centroids=means(points, labels, clusters).astype(np.float32),
        labels=labels,
        sizes=sizes,
        inertia=float(per_cluster.sum()),
        inertia_per_cluster=per_cluster,
        medoids=order[np.cumsum(sizes) - sizes],
        iterations=iterations,
    )


def _warn_of_duplicates(problem: Problem, result: KMeansResult) -> None:
    if result.inertia > 0:  # with fewer distinct points than k it is exactly 0
        return
    distinct = len({row.tobytes() for row in problem.points})
    if distinct < problem.k:
        log.warning("class %d: only %d distinct points for k = %d", problem.id, distinct, problem.k)
