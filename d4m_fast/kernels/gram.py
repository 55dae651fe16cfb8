"""k-means in Gram space: G = X X^T once, then no step depends on the points' width.

With S = G Z, Z the (n, k) indicator of the labels, the squared distance of point i to the mean of cluster c of n_c
points is G_ii - 2 S_ic / n_c + sum_{j in c} S_jc / n_c^2. Lloyd's passes and Hartigan's moves read and update S alone.
Worth it where points are wider than they are many, and clusters are many: see `gram_pays`.
"""

from __future__ import annotations

import numpy as np

from d4m_fast.kernels.direct import choose_seeds, trials_for
from d4m_fast.kernels.problem import Float32, Float64, Int64, Problem

LARGEST_GRAM = 1 << 30  # bytes
PASSES = 6
"""Passes' worth of products Lloyd takes on the points: later ones touch only the clusters that changed."""
REFINED = 1.5
"""How much more time Hartigan's refinement, which only Gram space affords, may cost."""
GAIN = 1e-6
"""Of the mean squared norm: moves that gain less than float32 products resolve are not made."""
MAX_SWEEPS = 100


def gram_pays(n: int, d: int, k: int, *, refine: bool) -> bool:
    """The cost model of method "auto", in floating-point operations of products.

    On the points: 2 n d k for each candidate of the seeding and for each of `PASSES` passes. In Gram space: n^2 d for
    the symmetric product and 2 n d k for the final check.
    """
    direct = 2.0 * n * d * k * (trials_for(k) + PASSES)
    gram = float(n) * n * d + 2.0 * n * d * k
    return 4 * n * n <= LARGEST_GRAM and gram <= direct * (REFINED if refine else 1.0)


def gram_matrix(problem: Problem) -> Float32:
    """(n, n) inner products; of a matrix with itself, BLAS computes one half."""
    gram: Float32 = problem.points @ problem.points.T
    return gram


def seed_labels(problem: Problem, gram: Float32, rng: np.random.Generator) -> Int64:
    """(n,) labels of the nearest of k points chosen by greedy k-means++."""
    squares = problem.squares

    def distances_to(rows: Int64) -> Float64:
        found: Float64 = np.maximum(squares - 2.0 * gram[rows] + squares[rows][:, None], 0)
        return found

    chosen = np.array(choose_seeds(problem, rng, distances_to))
    labels: Int64 = (squares[chosen][:, None] - 2.0 * gram[chosen]).argmin(axis=0)
    labels[chosen] = np.arange(problem.k)
    return _without_empty(labels, problem.k)


def _without_empty(labels: Int64, k: int) -> Int64:
    """With fewer distinct points than k one is chosen twice; its second cluster takes a point that can be spared."""
    sizes = np.bincount(labels, minlength=k)
    for empty in np.flatnonzero(sizes == 0):
        point = int((sizes[labels] > 1).argmax())
        sizes[labels[point]] -= 1
        sizes[empty] = 1
        labels[point] = empty
    return labels


def lloyd(problem: Problem, gram: Float32, labels: Int64, max_iter: int) -> tuple[Int64, int]:
    """Labels at convergence to float32's precision or after `max_iter` passes, and the passes made.

    Stops before a cluster would be left empty: what fills it is decided on the points.
    """
    clusters = _Clusters(gram, labels, problem.k)
    for iteration in range(1, max_iter + 1):
        new = (clusters.norms()[:, None] - 2.0 * clusters.sums / clusters.sizes[:, None]).argmin(axis=0)
        emptied = np.bincount(new, minlength=problem.k).min() == 0
        if emptied or np.array_equal(new, clusters.labels):
            return clusters.labels, iteration
        clusters.relabel(new)
    return clusters.labels, max_iter


def hartigan(problem: Problem, gram: Float32, labels: Int64) -> tuple[Int64, int]:
    """Move single points while that lowers the inertia; labels and sweeps (Hartigan 1975; Telgarsky, Vattani 2010).

    A point leaves cluster a of n_a points for b when n_b / (n_b + 1) |x - b|^2 < n_a / (n_a - 1) |x - a|^2. What it
    cannot improve Lloyd cannot either, but not the other way round.
    """
    clusters = _Clusters(gram, labels, problem.k)
    least = GAIN * float(problem.squares.mean())
    for sweep in range(1, MAX_SWEEPS + 1):
        gains, _ = clusters.gains(problem.squares, slice(None))
        candidates = np.flatnonzero(gains > least)
        moved = sum(clusters.move(problem.squares, int(point), least) for point in candidates)
        if not moved:
            return clusters.labels, sweep
    return clusters.labels, MAX_SWEEPS


class _Clusters:
    """Labels with what follows from them: `sizes` (k,), `sums` S^T (k, n) and `within` (k,), S summed over members."""

    def __init__(self, gram: Float32, labels: Int64, k: int) -> None:
        self._gram = gram
        self.labels = labels.copy()
        self.sizes = np.bincount(labels, minlength=k)
        self.sums = np.stack([self._sum(labels == c) for c in range(k)])
        self.within = self._within()

    def norms(self) -> Float64:
        """(k,) squared norms of the means."""
        return self.within / np.square(self.sizes)

    def relabel(self, new: Int64) -> None:
        """Only clusters that gained or lost points are summed, over those points where they are few."""
        moved = new != self.labels
        for c in np.union1d(new[moved], self.labels[moved]):
            gained, lost = moved & (new == c), moved & (self.labels == c)
            if 2 * np.count_nonzero(gained | lost) < np.count_nonzero(new == c):
                self.sums[c] += self._sum(gained) - self._sum(lost)
            else:
                self.sums[c] = self._sum(new == c)
        self.labels = new
        self.sizes = np.bincount(new, minlength=len(self.sizes))
        self.within = self._within()

    def gains(self, squares: Float64, points: int | slice) -> tuple[Float64, Int64]:
        """By how much the inertia falls when each of some points moves to its best other cluster, and that cluster."""
        labels, rows = np.atleast_1d(self.labels[points]), np.atleast_1d(squares[points])
        here = np.arange(len(labels))
        sums = self.sums[:, points].reshape(len(self.sizes), -1)
        distances = rows - 2.0 * sums / self.sizes[:, None] + self.norms()[:, None]
        sizes = self.sizes[labels]
        leaving = np.where(sizes > 1, sizes / np.maximum(sizes - 1, 1) * distances[labels, here], 0.0)
        joining = (self.sizes / (self.sizes + 1))[:, None] * distances
        joining[labels, here] = np.inf
        best: Int64 = joining.argmin(axis=0)
        return leaving - joining[best, here], best

    def move(self, squares: Float64, point: int, least: float) -> bool:
        """Move one point to its best other cluster, if that still gains more than `least`."""
        (gain,), (to,) = self.gains(squares, point)
        if gain <= least:
            return False
        row, old = self._gram[point].astype(np.float64), self.labels[point]
        self.within[old] += row[point] - 2.0 * self.sums[old, point]
        self.within[to] += row[point] + 2.0 * self.sums[to, point]
        self.sums[old] -= row
        self.sums[to] += row
        self.sizes[old] -= 1
        self.sizes[to] += 1
        self.labels[point] = to
        return True

    def _sum(self, members: np.ndarray) -> Float64:
        """(n,) inner products of all points with the sum of some; G is symmetric."""
        total: Float64 = self._gram[members].sum(axis=0, dtype=np.float64)
        return total

    def _within(self) -> Float64:
        own = self.sums[self.labels, np.arange(len(self.labels))]
        return np.bincount(self.labels, weights=own, minlength=len(self.sizes)).astype(np.float64)
