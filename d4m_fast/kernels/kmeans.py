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
    Int64,
    Problem,
    generator,
    initial_centres,
    prepare,
    squared_distances,
    squared_norms,
    sum_rows,
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
    max_iter: int = 300,
    init: Sequence[Any] | None = None,
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
        max_iter: the most assignment passes.
        init: initial centres (k_i, D_i) of each problem, in place of k-means++.
        refine: after Lloyd, move single points while that lowers the inertia (Hartigan); in Gram space only.
        threads: problems solved at a time; default: as many as there are CPUs.

    Raises:
        BadProblems: a problem is not a 2-D float16 or float32 array of finite values, k is below 1 or above n, or
            initial centres do not fit. All other problems are solved first: it has their results.
        UsageError: no such method, or options that do not fit together.
        PreflightError: "minibatch" without scikit-learn.
    """
    problem_requests, options = requests(problems, k, ids, init), Options(method, seed, max_iter, refine)
    require_fit(problem_requests, options)
    if any(device_of(points) is not None for points in problems):
        from d4m_fast.kernels.device import solve_on_gpu

        outcomes = solve_on_gpu(problem_requests, options)
    else:
        workers = min(_cpus() if threads is None else threads, max(1, len(problem_requests)))
        # One thread per problem: how many share a product decides its last bits.
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            outcomes = list(pool.map(partial(_outcome, options=options), problem_requests))
    results = [outcome for outcome in outcomes if not isinstance(outcome, DataError)]
    if len(results) < len(problem_requests):
        raise BadProblems(outcomes)
    return results


def _cpus() -> int:
    # Those that this process may use, which in a container or a batch job are fewer than the machine's.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else multiprocessing.cpu_count()


def _outcome(request: Request, options: Options) -> Outcome:
    try:
        problem = prepare(request.points, request.k, request.id)
        return _solve(problem, request.start, options)
    except DataError as error:
        return error


def _solve(problem: Problem, start: Any, options: Options) -> KMeansResult:
    n, d = problem.points.shape
    if options.method == "minibatch":
        return _official(problem, generator(options.seed, problem.id))
    if start is None and problem.k in (1, n):
        return _result(problem, np.arange(n) % problem.k, 0)  # the optimum, in closed form
    gram_pays = gram.pays(n, d, problem.k, refine=options.refine, seeds=start is None)
    if options.method == "gram" or (options.method == "auto" and gram_pays):
        return _result(problem, *_run_in_gram_space(problem, start, options))
    return _result(problem, *_run_on_points(problem, start, options))


def _run_on_points(problem: Problem, start: Any, options: Options) -> tuple[Int64, int]:
    if start is not None:
        first = direct.assign(problem, initial_centres(problem, start))
        labels, passes = direct.lloyd(problem, first, options.max_iter - 1)
        return labels, 1 + passes
    _, first = direct.choose_seeds(problem, generator(options.seed, problem.id))
    return direct.lloyd(problem, first, options.max_iter)


def _run_in_gram_space(problem: Problem, start: Any, options: Options) -> tuple[Int64, int]:
    """Run Lloyd and Hartigan in Gram space, then Lloyd on the points if that can still change anything."""
    products = gram.gram_matrix(problem)
    if start is not None:
        labels, passes = direct.assign(problem, initial_centres(problem, start)), 1
    else:
        _, labels = gram.choose_seeds(problem, products, generator(options.seed, problem.id))
        passes = 0
    if passes >= options.max_iter:
        return labels, passes
    remaining = options.max_iter - passes
    labels, gram_passes, is_fixed = gram.refine(problem, products, labels, remaining, by_hartigan=options.refine)
    passes += gram_passes
    if is_fixed or passes >= options.max_iter:
        return labels, passes
    labels, point_passes = direct.lloyd(problem, labels, options.max_iter - passes)
    return labels, passes + point_passes


def _official(problem: Problem, rng: np.random.Generator) -> KMeansResult:
    """Cluster as the official code does, and label all points by the centres that it leaves."""
    official = official_centres(problem.original, problem.k, rng)
    centres = official - problem.shift
    scores = np.empty((len(problem.points), problem.k), np.float32)
    direct.score(problem, centres, np.arange(problem.k), scores)
    labels = direct.nearest(problem, centres, scores)
    distances = squared_distances(problem.points, centres, labels)
    passes = len(problem.points) // problem.k  # of `partial_fit`, one per lot
    result = summarize(official.astype(np.float32), labels, distances, passes)
    return replace(_with_effective_k(problem, result), medoids=direct.closest_points(problem, centres, scores))


def _result(problem: Problem, labels: Int64, iterations: int) -> KMeansResult:
    """Return the result of labels, with the means of the original points as centroids."""
    centroids = np.empty((problem.k, problem.points.shape[1]), np.float32)
    distances = np.empty(len(labels))
    for c in range(problem.k):
        members = np.flatnonzero(labels == c)
        rows = problem.points[members]
        mean = sum_rows(rows) / len(members)
        distances[members] = squared_norms(rows, mean)
        # Centred points have lost the last bits of those far off the common mean.
        centroids[c] = sum_rows(problem.original[members]) / len(members) if problem.shift.any() else mean
    return _with_effective_k(problem, summarize(centroids, labels, distances, iterations))


def _with_effective_k(problem: Problem, result: KMeansResult) -> KMeansResult:
    # Points are compared only where the inertia says that there may be too few different ones.
    if result.inertia > DUPLICATES * problem.squares.sum():
        return result
    return replace(result, effective_k=effective_k(problem.points, problem.k, problem.id))
