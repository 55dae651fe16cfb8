"""k-means of many independent problems, one per class.

Methods, each in the module of its name: `direct` on the points, `gram` on their inner products, where single points are
moved as well (Hartigan), `minibatch` as D4M's official code. `auto` takes `gram` where its cost model says so.

Numerics. Points with a large common mean are centred on it, so that it costs no digits. Products are float32 matrix
products; whatever they cannot decide (two centroids at the same distance within their rounding) is decided by float64
ones, and what those cannot decide goes to the lowest index. Sums, norms and inertia are float64. What Gram space finds
is checked on the points wherever its rounding could have decided, and gone over by `direct` where it did.

Problems are solved side by side, each on one thread, BLAS included, so that a result has the same bits on any number of
threads and in any company. Meanwhile BLAS has one thread in the whole process: one call at a time.

Memory per problem in work: a float32 copy of its points where they are float16 or have to be centred, an (n, k) float32
score matrix, float64 centroids; in Gram space an (n, n) float32 and two (k, n) float64 matrices.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from d4m_fast.errors import DataError
from d4m_fast.kernels import direct, gram
from d4m_fast.kernels.cuda import device_of
from d4m_fast.kernels.minibatch import official_centres
from d4m_fast.kernels.problem import (
    Float32,
    Float64,
    Int64,
    Problem,
    generator,
    given_centres,
    prepare,
    squared_distances,
    squared_norms,
    weighted_sum,
)
from d4m_fast.kernels.request import Method, Options, Request, requests, require_fit
from d4m_fast.kernels.result import DUPLICATES, BadProblems, KMeansResult, Outcome, effective_k, summarize

__all__ = ["BadProblems", "KMeansResult", "Method", "kmeans"]


def kmeans(
    problems: Sequence[Any],
    k: int | Sequence[int],
    *,
    ids: Sequence[int] | None = None,
    method: Method = "auto",
    seed: int = 0,
    n_init: int = 1,
    max_iter: int = 300,
    init: Sequence[Any] | None = None,
    weights: Sequence[Any] | None = None,
    refine: bool = True,
    threads: int | None = None,
) -> list[KMeansResult]:
    """Cluster each problem on its own; a result depends on its problem, k, id and options, never on its neighbours.

    At convergence each label is the nearest centroid's, the lowest index of equals. Stopped by `max_iter`, centroids
    are still the means of the labels. A cluster left empty takes the point farthest from its centroid, never a
    cluster's only one, so sizes are at least 1: with fewer distinct points than k (a warning is logged, and
    `effective_k` says so) some centroids are equal and share their points.

    Args:
        problems: float16 or float32 of shape (n_i, D_i): arrays, CPU tensors, or whatever else NumPy can look at
            through DLPack or `__array__`, without a copy. Arrays and tensors on one GPU are clustered there
            (kernels/device.py).
        k: clusters, for all problems or for each.
        ids: names of the problems in messages and the keys of their random streams; default: their positions.
        method: how, see above.
        seed: the stream of a problem is seeded with SHA-256("seed/id/kmeans").
        n_init: seedings per problem; the lowest inertia is kept.
        max_iter: the most assignment passes per seeding.
        init: initial centres (k_i, D_i) of each problem, in place of k-means++.
        weights: of the points of each problem, positive, (n_i,) or None; not for "minibatch".
        refine: after Lloyd, move single points while that lowers the inertia (Hartigan); in Gram space only.
        threads: problems solved at a time; default: as many as there are CPUs.

    Raises:
        BadProblems: a problem is not a 2-D float16 or float32 array of finite values, k is below 1 or above n, or
            weights or initial centres do not fit. All other problems are solved first: it has their results.
        UsageError: no such method, or options that do not fit together.
        PreflightError: "minibatch" without scikit-learn.
    """
    asked, options = requests(problems, k, ids, init, weights), Options(method, seed, n_init, max_iter, refine)
    require_fit(asked, options)
    if any(device_of(points) is not None for points in problems):
        outcomes = _on_gpu(asked, options)
    else:
        workers = min(_cpus() if threads is None else threads, max(1, len(asked)))
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            outcomes = list(pool.map(partial(_outcome, options=options), asked))
    results = [outcome for outcome in outcomes if not isinstance(outcome, DataError)]
    if len(results) < len(asked):
        raise BadProblems(outcomes)
    return results


def _on_gpu(asked: Sequence[Request], options: Options) -> list[Outcome]:
    from d4m_fast.kernels.device import solve_on_gpu

    return solve_on_gpu(asked, options)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else multiprocessing.cpu_count()


def _outcome(request: Request, options: Options) -> Outcome:
    try:
        problem = prepare(request.points, request.k, request.id, request.weights)
        return _solve(problem, request.start, options)
    except DataError as error:
        return error


def _solve(problem: Problem, start: Any, options: Options) -> KMeansResult:
    n = len(problem.points)
    if options.method == "minibatch":
        return _official(problem, generator(options.seed, problem.id))
    if start is None and problem.k in (1, n):
        runs = [(np.arange(n) % problem.k, 0)]  # the optimum, in closed form
    elif options.method == "gram" or (options.method == "auto" and _gram_pays(problem, start, options)):
        runs = _gram_runs(problem, start, options)
    else:
        runs = _direct_runs(problem, start, options)
    return min((_result(problem, labels, passes) for labels, passes in runs), key=lambda result: result.inertia)


def _gram_pays(problem: Problem, start: Any, options: Options) -> bool:
    seedings = options.n_init if start is None else 0
    n, d = problem.points.shape
    return gram.pays(n, d, problem.k, refine=options.refine, seedings=seedings)


def _direct_runs(problem: Problem, start: Any, options: Options) -> list[tuple[Int64, int]]:
    if start is not None:
        first = direct.assign(problem, given_centres(problem, start))
        labels, passes = direct.lloyd(problem, first, options.max_iter - 1)
        return [(labels, 1 + passes)]
    rng = generator(options.seed, problem.id)
    seedings = (direct.choose_seeds(problem, rng)[1] for _ in range(options.n_init))
    return [direct.lloyd(problem, labels, options.max_iter) for labels in seedings]


def _gram_runs(problem: Problem, start: Any, options: Options) -> list[tuple[Int64, int]]:
    products, rng = gram.gram_matrix(problem), generator(options.seed, problem.id)
    if start is not None:
        labels = direct.assign(problem, given_centres(problem, start))
        return [_gram_run(problem, products, labels, 1, options)]
    seedings = (gram.choose_seeds(problem, products, rng)[1] for _ in range(options.n_init))
    return [_gram_run(problem, products, labels, 0, options) for labels in seedings]


def _gram_run(problem: Problem, products: Float32, labels: Int64, passes: int, options: Options) -> tuple[Int64, int]:
    """Lloyd and Hartigan in Gram space, then Lloyd on the points if that can still change anything."""
    if passes >= options.max_iter:
        return labels, passes
    left = options.max_iter - passes
    labels, made, fixed = gram.refine(problem, products, labels, left, by_hartigan=options.refine)
    passes += made
    if fixed or passes >= options.max_iter:
        return labels, passes
    labels, made = direct.lloyd(problem, labels, options.max_iter - passes)
    return labels, passes + made


def _official(problem: Problem, rng: np.random.Generator) -> KMeansResult:
    """Centres as the official code leaves them; labels, sizes and inertia of all points to them."""
    official = official_centres(problem.given, problem.k, rng)
    centres = official - problem.shift
    scores = np.empty((len(problem.points), problem.k), np.float32)
    direct.score(problem, centres, np.arange(problem.k), scores)
    labels = direct.nearest(problem, centres, scores)
    distances = squared_distances(problem.points, centres, labels)
    passes = len(problem.points) // problem.k
    found = summarize(official.astype(np.float32), labels, distances, None, passes)
    return replace(_counted(problem, found), medoids=direct.closest_points(problem, centres, scores))


def _result(problem: Problem, labels: Int64, iterations: int) -> KMeansResult:
    centroids, distances = _means_and_distances(problem, labels)
    return _counted(problem, summarize(centroids, labels, distances, problem.weights, iterations))


def _counted(problem: Problem, result: KMeansResult) -> KMeansResult:
    """With its `effective_k`: points are compared only where the inertia says that there may be too few."""
    if result.inertia > DUPLICATES * problem.squares.sum():
        return result
    return replace(result, effective_k=effective_k(problem.points, problem.k, problem.id))


def _means_and_distances(problem: Problem, labels: Int64) -> tuple[Float32, Float64]:
    """(k, D) means of the points as given, and (n,) squared distances from them, each cluster gathered once."""
    centroids = np.empty((problem.k, problem.points.shape[1]), np.float32)
    distances = np.empty(len(labels))
    for c, mass in enumerate(problem.masses(labels)):
        members = np.flatnonzero(labels == c)
        rows, weights = problem.points[members], problem.weights_of(members)
        mean = weighted_sum(rows, weights) / mass
        distances[members] = squared_norms(rows, mean)
        # Centred points have lost the last bits of those far off the common mean.
        centroids[c] = weighted_sum(problem.given[members], weights) / mass if problem.shift.any() else mean
    return centroids, distances
