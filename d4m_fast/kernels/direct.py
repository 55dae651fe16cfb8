"""k-means on the points themselves: greedy k-means++ and Lloyd's algorithm, two products per pass.

Seeding: Arthur and Vassilvitskii, SODA 2007, with the candidate trials that scikit-learn makes. Lloyd, IEEE Trans. Inf.
Theory 28, 1982, until no label changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from d4m_fast.kernels.problem import (
    FLOAT32_TIE,
    Float32,
    Float64,
    Int64,
    Problem,
    blocks,
    means,
    squared_distances,
)

FLOAT64_TIE = 1e-12
DistancesTo = Callable[[Int64], Float64]


def seed_centres(problem: Problem, rng: np.random.Generator) -> Float64:
    """(k, D): of greedy k-means++."""
    return problem.points[choose_seeds(problem, rng, lambda rows: _distances_to(problem, rows))].astype(np.float64)


def choose_seeds(problem: Problem, rng: np.random.Generator, distances_to: DistancesTo) -> list[int]:
    """(k,) points: each the best of 2 + log k drawn in proportion to their squared distance from the nearest so far.

    Args:
        distances_to: squared distances (candidates, n) of all points to some.
    """
    n = len(problem.points)
    chosen = [int(rng.integers(n))]
    closest = settled(problem, chosen[0], distances_to(np.array(chosen))[0])
    while len(chosen) < problem.k:
        cumulative = np.cumsum(closest)
        draws = np.searchsorted(cumulative, rng.random(trials_for(problem.k)) * cumulative[-1], side="right")
        candidates = np.minimum(draws, n - 1)  # draws are n when only duplicates are left
        distances = distances_to(candidates)
        best = int(np.minimum(closest, distances).sum(axis=1).argmin())
        chosen.append(int(candidates[best]))
        closest = np.minimum(closest, settled(problem, chosen[-1], distances[best]))
    return chosen


def trials_for(k: int) -> int:
    """Candidates per seed, scikit-learn's number."""
    return 2 + int(np.log(k))


def _distances_to(problem: Problem, candidates: Int64) -> Float64:
    """(candidates, n): squared distances, to the precision of a float32 product."""
    products = (problem.points @ problem.points[candidates].T).T
    return np.maximum(problem.squares - 2.0 * products + problem.squares[candidates][:, None], 0)


def settled(problem: Problem, chosen: int, distances: Float64) -> Float64:
    """The distances to the chosen point, exact where rounding drowns them: duplicates are at 0."""
    near = np.flatnonzero(distances <= FLOAT32_TIE * (problem.squares + problem.squares[chosen]))
    centre = problem.points[chosen][None].astype(np.float64)
    settled = distances.copy()
    settled[near] = squared_distances(problem.points[near], centre, np.zeros(len(near), int))
    return settled


def lloyd(problem: Problem, centroids: Float64, max_iter: int) -> tuple[Int64, int]:
    """Labels at convergence or after `max_iter` passes, and the passes made. Overwrites `centroids`.

    Only clusters that gained or lost a point get new means and scores: after a few passes, a small part of them.
    """
    scores = np.empty((len(problem.points), problem.k), np.float32)
    changed = np.arange(problem.k)
    previous = np.full(len(problem.points), -1)
    for iteration in range(1, max_iter + 1):
        score(problem, centroids, changed, scores)
        labels = fill_empty(problem, centroids, nearest(problem, centroids, scores))
        moved = labels != previous
        if not moved.any():
            return labels, iteration
        changed = np.union1d(labels[moved], previous[moved])
        changed = changed[changed >= 0]
        centroids[changed] = means(problem.points, labels, changed)
        previous = labels
    return previous, max_iter


def score(problem: Problem, centroids: Float64, columns: Int64, scores: Float32) -> None:
    """Set these columns of the (n, k) scores, |x - c|^2 - |x|^2 to float32 precision."""
    selected = centroids[columns]
    products = problem.points @ selected.astype(np.float32).T
    products *= -2
    products += np.square(selected).sum(axis=1).astype(np.float32)
    scores[:, columns] = products


def nearest(problem: Problem, centroids: Float64, scores: Float32) -> Int64:
    """(n,) the nearest centroid of each point, the lowest index of equals."""
    largest = np.square(centroids).sum(axis=1).max()
    scale = np.sqrt(problem.squares * largest) + largest
    limit = (scores.min(axis=1) + FLOAT32_TIE * scale).astype(np.float32)
    candidates = scores <= limit[:, None]
    labels: Int64 = candidates.argmax(axis=1)
    unclear = np.flatnonzero(np.count_nonzero(candidates, axis=1) > 1)
    for block in blocks(len(unclear), max(centroids.shape)):
        rows = unclear[block]
        labels[rows] = _nearest_exactly(problem.points[rows], centroids, scale[rows])
    return labels


def _nearest_exactly(points: Float32, centroids: Float64, scale: Float64) -> Int64:
    scores = np.square(centroids).sum(axis=1) - 2.0 * (points.astype(np.float64) @ centroids.T)
    limit = scores.min(axis=1) + FLOAT64_TIE * scale
    nearest: Int64 = (scores <= limit[:, None]).argmax(axis=1)
    return nearest


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
