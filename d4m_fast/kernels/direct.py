"""k-means on the points themselves: k-means++ and Lloyd's algorithm (IEEE Trans. Inf. Theory 28, 1982)."""

from __future__ import annotations

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
    sum_rows,
    sums,
)

FLOAT64_TIE = 1e-12  # of |x||c|: float64 distances that are closer count as equal
# Of points at least so wide, products are what costs, and more than one candidate per seed gains little.
WIDE = 1024


def choose_seeds(problem: Problem, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Choose (k,) points by k-means++, and label the (n,) points by the nearest of them."""
    points = problem.points
    trials = trials_for(problem.k, points.shape[1])
    return seeding.choose_seeds(problem, rng, lambda rows: points[rows] @ points.T, trials)


def trials_for(k: int, d: int) -> int:
    """Return the number of candidates per seed."""
    return 1 if d >= WIDE else seeding.greedy_trials(k)


def assign(problem: Problem, centroids: Float64) -> Int64:
    """Return the nearest centroid of each point, (n,); a cluster left empty gets a point."""
    scores = np.empty((len(problem.points), problem.k), np.float32)
    score(problem, centroids, np.arange(problem.k), scores)
    return fill_empty(problem, centroids, nearest(problem, centroids, scores))


def lloyd(problem: Problem, labels: Int64, max_iter: int) -> tuple[Int64, int]:
    """Run Lloyd's passes from labels of which no cluster is empty; return the labels and the number of passes.

    Only clusters that gained or lost a point get new means and scores: after a few passes, a small part of them.
    """
    changed = np.arange(problem.k)
    totals, scores = sums(problem, labels, changed), np.empty((len(labels), problem.k), np.float32)
    centroids = totals / problem.sizes(labels)[:, None]
    for iteration in range(1, max_iter + 1):
        score(problem, centroids, changed, scores)
        new_labels = fill_empty(problem, centroids, nearest(problem, centroids, scores))
        moved = new_labels != labels
        if not moved.any():
            return labels, iteration
        changed = np.union1d(new_labels[moved], labels[moved])
        _update(problem, totals, labels, new_labels, changed)
        centroids[changed] = totals[changed] / problem.sizes(new_labels)[changed, None]
        labels = new_labels
    return labels, max_iter


def _update(problem: Problem, totals: Float64, old_labels: Int64, new_labels: Int64, changed: Int64) -> None:
    """Sum the changed clusters anew, or add and subtract the points that moved where these are fewer."""
    moved = old_labels != new_labels
    sizes = problem.sizes(new_labels)
    for c in changed:
        gained, lost = moved & (new_labels == c), moved & (old_labels == c)
        if 2 * np.count_nonzero(gained | lost) < sizes[c]:
            for sign, members in ((1, gained), (-1, lost)):
                totals[c] += sign * sum_rows(problem.points[members])
        else:
            totals[c] = sum_rows(problem.points[new_labels == c])


def score(problem: Problem, centroids: Float64, columns: Int64, scores: Float32) -> None:
    """Set these columns of the (n, k) scores, |x - c|^2 - |x|^2 to float32 precision."""
    # The factor goes into the centroids, of which there are fewer than scores.
    selected = centroids[columns]
    products = problem.points @ (-2 * selected).astype(np.float32).T
    products += np.square(selected).sum(axis=1).astype(np.float32)
    scores[:, columns] = products


def nearest(problem: Problem, centroids: Float64, scores: Float32) -> Int64:
    """Return the nearest centroid of each point, (n,), the lowest index of equals. Leaves the scores as they are."""
    largest = np.square(centroids).sum(axis=1).max()
    scale = np.sqrt(problem.squares * largest) + largest
    rows = np.arange(len(scores))
    labels: Int64 = scores.argmin(axis=1)
    best = scores[rows, labels]
    # The second best is found in place, the best hidden meanwhile: a copy of (n, k) costs more than the search.
    scores[rows, labels] = np.inf
    unclear = np.flatnonzero(scores.min(axis=1) <= best + FLOAT32_TIE * scale)
    scores[rows, labels] = best
    # In blocks, as all points are unclear where many centroids are equal.
    for block in blocks(len(unclear), max(centroids.shape)):
        points = unclear[block]
        labels[points] = nearest_exactly(problem.points[points], centroids, scale[points])
    return labels


def nearest_exactly(points: Float32, centroids: Float64, scale: Float64) -> Int64:
    """Return the nearest centroids, (n,), by float64 products; what they cannot decide goes to the lowest index."""
    scores = np.square(centroids).sum(axis=1) - 2.0 * (points.astype(np.float64) @ centroids.T)
    limit = scores.min(axis=1) + FLOAT64_TIE * scale
    nearest: Int64 = (scores <= limit[:, None]).argmax(axis=1)
    return nearest


def closest_points(problem: Problem, centroids: Float64, scores: Float32) -> Int64:
    """Return the point nearest to each centroid, (k,), the lowest index of equals."""
    # Products find the points in question, float64 differences the nearest of these.
    distances = scores + problem.squares[:, None]
    limits = distances.min(axis=0) + FLOAT32_TIE * (problem.squares.max() + np.square(centroids).sum(axis=1))
    closest = np.empty(problem.k, np.int64)
    for c, centroid in enumerate(centroids):
        rows = np.flatnonzero(distances[:, c] <= limits[c])
        closest[c] = rows[squared_norms(problem.points[rows], centroid).argmin()]
    return closest


def fill_empty(problem: Problem, centroids: Float64, labels: Int64) -> Int64:
    """Give each empty cluster the point farthest from its centroid; the lowest index of equals, never an only one."""
    sizes = np.bincount(labels, minlength=problem.k)
    empty = np.flatnonzero(sizes == 0).tolist()
    if not empty:
        return labels
    distances = squared_distances(problem.points, centroids, labels)
    # Stable, so that of equally far points the one of lowest index comes first.
    for point in np.argsort(-distances, kind="stable"):
        if empty and sizes[labels[point]] > 1:
            sizes[labels[point]] -= 1
            labels[point] = empty.pop(0)
    return labels
