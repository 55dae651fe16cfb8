"""k-means on the points themselves: k-means++ and Lloyd's algorithm (IEEE Trans. Inf. Theory 28, 1982)."""

from __future__ import annotations

from functools import partial

import numpy as np

from d4m_fast.kernels import seeding
from d4m_fast.kernels.problem import (
    FLOAT32_TIE,
    Float32,
    Float64,
    Int64,
    Problem,
    blocks,
    squared_distances,
    squared_norms,
    sums,
    weighted_sum,
)

FLOAT64_TIE = 1e-12
WIDE = 1024
"""Of points at least so wide, products are what costs, and more than one candidate per seed gains little."""


def choose_seeds(problem: Problem, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """(k,) points chosen by k-means++ and (n,) labels, the nearest of them."""
    trials = trials_for(problem.k, problem.points.shape[1])
    return seeding.choose_seeds(problem, rng, partial(_distances_to, problem), trials)


def trials_for(k: int, d: int) -> int:
    """Candidates per seed."""
    return 1 if d >= WIDE else seeding.greedy_trials(k)


def _distances_to(problem: Problem, rows: Int64) -> Float32:
    """(rows, n): squared distances, to the precision of a float32 product."""
    products: Float32 = (-2 * problem.points[rows]) @ problem.points.T
    products += problem.squares.astype(np.float32)
    products += problem.squares[rows].astype(np.float32)[:, None]
    return np.maximum(products, 0, out=products)


def assign(problem: Problem, centroids: Float64) -> Int64:
    """(n,) the nearest centroid of each point; a cluster left empty gets one."""
    scores = np.empty((len(problem.points), problem.k), np.float32)
    score(problem, centroids, np.arange(problem.k), scores)
    return fill_empty(problem, centroids, nearest(problem, centroids, scores))


def lloyd(problem: Problem, labels: Int64, max_iter: int) -> tuple[Int64, int]:
    """From labels of which no cluster is empty: those at convergence or after `max_iter` passes, and the passes made.

    Only clusters that gained or lost a point get new means and scores: after a few passes, a small part of them.
    """
    changed = np.arange(problem.k)
    totals, scores = sums(problem, labels, changed), np.empty((len(labels), problem.k), np.float32)
    centroids = totals / problem.masses(labels)[:, None]
    for iteration in range(1, max_iter + 1):
        score(problem, centroids, changed, scores)
        new = fill_empty(problem, centroids, nearest(problem, centroids, scores))
        moved = new != labels
        if not moved.any():
            return labels, iteration
        changed = np.union1d(new[moved], labels[moved])
        _update(problem, totals, labels, new, changed)
        centroids[changed] = totals[changed] / problem.masses(new)[changed, None]
        labels = new
    return labels, max_iter


def _update(problem: Problem, totals: Float64, old: Int64, new: Int64, changed: Int64) -> None:
    """Sums of the changed clusters: anew, or from the points that came and went where these are fewer."""
    moved = old != new
    sizes = np.bincount(new, minlength=problem.k)
    for c in changed:
        gained, lost = moved & (new == c), moved & (old == c)
        if 2 * np.count_nonzero(gained | lost) < sizes[c]:
            for sign, members in ((1, gained), (-1, lost)):
                totals[c] += sign * weighted_sum(problem.points[members], problem.weights_of(members))
        else:
            totals[c] = weighted_sum(problem.points[new == c], problem.weights_of(new == c))


def score(problem: Problem, centroids: Float64, columns: Int64, scores: Float32) -> None:
    """Set these columns of the (n, k) scores, |x - c|^2 - |x|^2 to float32 precision."""
    selected = centroids[columns]
    products = problem.points @ (-2 * selected).astype(np.float32).T
    products += np.square(selected).sum(axis=1).astype(np.float32)
    scores[:, columns] = products


def nearest(problem: Problem, centroids: Float64, scores: Float32) -> Int64:
    """(n,) the nearest centroid of each point, the lowest index of equals. Leaves the scores as they are."""
    largest = np.square(centroids).sum(axis=1).max()
    scale = np.sqrt(problem.squares * largest) + largest
    here = np.arange(len(scores))
    labels: Int64 = scores.argmin(axis=1)
    best = scores[here, labels]
    scores[here, labels] = np.inf
    unclear = np.flatnonzero(scores.min(axis=1) <= best + FLOAT32_TIE * scale)
    scores[here, labels] = best
    for block in blocks(len(unclear), max(centroids.shape)):
        rows = unclear[block]
        labels[rows] = nearest_exactly(problem.points[rows], centroids, scale[rows])
    return labels


def nearest_exactly(points: Float32, centroids: Float64, scale: Float64) -> Int64:
    """(n,) by float64 products; what they cannot decide goes to the lowest index."""
    scores = np.square(centroids).sum(axis=1) - 2.0 * (points.astype(np.float64) @ centroids.T)
    limit = scores.min(axis=1) + FLOAT64_TIE * scale
    nearest: Int64 = (scores <= limit[:, None]).argmax(axis=1)
    return nearest


def closest_points(problem: Problem, centroids: Float64, scores: Float32) -> Int64:
    """(k,) the point nearest to each centroid, the lowest index of equals."""
    distances = scores + problem.squares[:, None]
    limits = distances.min(axis=0) + FLOAT32_TIE * (problem.squares.max() + np.square(centroids).sum(axis=1))
    found = np.empty(problem.k, np.int64)
    for c, centroid in enumerate(centroids):
        rows = np.flatnonzero(distances[:, c] <= limits[c])
        found[c] = rows[squared_norms(problem.points[rows], centroid).argmin()]
    return found


def fill_empty(problem: Problem, centroids: Float64, labels: Int64) -> Int64:
    """Give each empty cluster the point farthest from its centroid; the lowest index of equals, never an only one."""
    sizes = np.bincount(labels, minlength=problem.k)
    empty = np.flatnonzero(sizes == 0).tolist()
    if not empty:
        return labels
    distances = squared_distances(problem.points, centroids, labels)
    for point in np.argsort(-distances, kind="stable"):
        if empty and sizes[labels[point]] > 1:
            sizes[labels[point]] -= 1
            labels[point] = empty.pop(0)
    return labels
