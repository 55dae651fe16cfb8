"""k-means in Gram space: G = X X^T once, then no step depends on the points' width.

With S = G Z, Z the (n, k) indicator of the labels, the squared distance of point i to the mean of cluster c of m_c
points is G_ii - 2 S_ic / m_c + sum_{j in c} S_jc / m_c^2. Lloyd's passes and Hartigan's moves read and update S alone.
"""

from __future__ import annotations

import numpy as np

from d4m_fast.kernels import seeding
from d4m_fast.kernels.direct import nearest_exactly
from d4m_fast.kernels.problem import FLOAT32_TIE, Float32, Float64, Int64, Problem, means, sum_rows

LARGEST_GRAM = 1 << 30  # bytes
# Part of the mean squared norm. Moves that gain less are not made: float32 products hardly resolve them.
GAIN = 1e-6
# Part of the mean squared norm: about the error of a float32 product.
BLUR = 1e-7
MAX_SWEEPS = 100  # a bound, should rounding let two moves undo each other
# Passes' worth of products that Lloyd takes on the points: most touch only the clusters that changed.
PASSES = 3


def pays(n: int, d: int, k: int, *, refine: bool, seeds: bool) -> bool:
    """Tell whether method "auto" goes to Gram space.

    To refine needs Gram space, and pays where that has no more elements than the points: wide points are where Lloyd
    stops early. Without, it pays where n^2 d operations of the symmetric product are fewer than those on the points,
    2 n d k for each of `PASSES` passes' worth of products and for one more where it chooses seeds, the caller having
    passed no initial centres.
    """
    direct = (PASSES + seeds) * 2.0 * n * d * k
    return 4 * n * n <= LARGEST_GRAM and (n <= d if refine else float(n) * n * d < direct)


def gram_matrix(problem: Problem) -> Float32:
    """Return the (n, n) inner products; of a matrix with itself, BLAS computes one half."""
    gram: Float32 = problem.points @ problem.points.T
    return gram


def choose_seeds(problem: Problem, gram: Float32, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Choose (k,) points by greedy k-means++, and label the (n,) points by the nearest of them."""
    return seeding.choose_seeds(problem, rng, lambda rows: gram[rows], seeding.greedy_trials(problem.k))


def refine(
    problem: Problem, gram: Float32, labels: Int64, max_iter: int, *, by_hartigan: bool
) -> tuple[Int64, int, bool]:
    """Run Lloyd's passes, then Hartigan's moves; return labels, passes, and whether Lloyd could surely change nothing.

    Stops before a cluster would be left empty: what fills it is decided on the points.
    """
    clusters = _Clusters(problem, gram, labels)
    passes = _lloyd(clusters, max_iter)
    if by_hartigan and passes < max_iter:
        passes += _hartigan(clusters)
    return clusters.labels, passes, passes < max_iter and _is_fixed(problem, clusters)


def _lloyd(clusters: _Clusters, max_iter: int) -> int:
    """Make Lloyd's passes, and count them. Points whose scores are equal but for rounding stay where they are."""
    points = np.arange(len(clusters.labels))
    for iteration in range(1, max_iter + 1):
        scores = clusters.scores()
        nearest = scores.argmin(axis=0)
        gain = scores[clusters.labels, points] - scores[nearest, points]
        labels = np.where(gain > clusters.blur, nearest, clusters.labels)
        emptied = np.bincount(labels, minlength=len(clusters.sizes)).min() == 0
        if emptied or np.array_equal(labels, clusters.labels):
            return iteration
        clusters.relabel(labels)
    return max_iter


def _hartigan(clusters: _Clusters) -> int:
    """Move single points while that lowers the inertia; count the sweeps (Hartigan 1975; Telgarsky, Vattani 2010).

    A point leaves cluster a for b when m_b / (m_b + 1) |x - b|^2 < m_a / (m_a - 1) |x - a|^2, m being sizes. What it
    cannot improve Lloyd cannot either, but not the other way round.
    """
    for sweep in range(1, MAX_SWEEPS + 1):
        moves = 0
        for point in clusters.movable():  # as things were before the sweep: `move` looks again
            moves += clusters.move(int(point))
        if not moves:
            return sweep
    return MAX_SWEEPS


def _is_fixed(problem: Problem, clusters: _Clusters) -> bool:
    """Tell whether every point is nearest to its own mean: by S where its rounding allows, else by the points."""
    scores, labels = clusters.scores(), clusters.labels
    points = np.arange(len(labels))
    limit = scores[labels, points] + clusters.rounding
    scores[labels, points] = np.inf
    unclear = np.flatnonzero(scores.min(axis=0) <= limit)
    if not len(unclear):
        return True
    scale = clusters.rounding[unclear] / FLOAT32_TIE
    nearest = nearest_exactly(problem.points[unclear], means(problem, labels), scale)
    return bool(np.array_equal(nearest, labels[unclear]))


class _Clusters:
    """Labels and what follows from them: `sizes` and `norms` of the means (k,), `sums` S^T (k, n).

    `rounding` (n,) bounds the error that float32 products leave in the difference of two of a point's scores, `blur` is
    its usual size.
    """

    def __init__(self, problem: Problem, gram: Float32, labels: Int64) -> None:
        self._problem = problem
        self._gram = gram
        longest = np.sqrt(problem.squares.max())
        self.rounding = 2 * FLOAT32_TIE * (longest * np.sqrt(problem.squares) + longest**2)
        mean_square = float(problem.squares.mean())
        self._least, self.blur = GAIN * mean_square, BLUR * mean_square
        self.sums = np.empty((problem.k, len(labels)))
        self._set_labels(labels.copy())
        for c in range(problem.k):
            self.sums[c] = sum_rows(gram[labels == c])  # G is symmetric
        self._set_within()

    def scores(self) -> Float64:
        """Return squared distances to the means, less the points' squared norms, (k, n)."""
        scores = self.sums * self._scale[:, None]
        scores += self.norms[:, None]
        return scores

    def relabel(self, labels: Int64) -> None:
        """Take new labels. Only clusters that changed are summed, over the points that moved where they are few."""
        moved, old_labels = labels != self.labels, self.labels
        self._set_labels(labels)
        for c in np.union1d(labels[moved], old_labels[moved]):
            gained, lost = moved & (labels == c), moved & (old_labels == c)
            if 2 * np.count_nonzero(gained | lost) < self.sizes[c]:
                self.sums[c] += sum_rows(self._gram[gained]) - sum_rows(self._gram[lost])
            else:
                self.sums[c] = sum_rows(self._gram[labels == c])
        self._set_within()

    def movable(self) -> Int64:
        """Return the points that gain from a move as things are now."""
        points = np.arange(len(self.labels))
        distances = self.scores()
        distances += self._problem.squares
        sizes = self.sizes[self.labels]
        leaving = sizes / np.where(sizes > 1, sizes - 1, np.inf) * distances[self.labels, points]
        distances[self.labels, points] = np.inf
        distances *= self._joining()[:, None]
        return np.flatnonzero(leaving - distances.min(axis=0) > self._least)

    def move(self, point: int) -> bool:
        """Move one point to its best other cluster, if that gains anything; a cluster's only point stays."""
        source = self.labels[point]
        if self.sizes[source] == 1:
            return False
        # As in `scores`, but of this point alone, and after the moves before it.
        distances = self.sums[:, point] * self._scale
        distances += self.norms
        distances += self._problem.squares[point]
        leaving = self.sizes[source] / (self.sizes[source] - 1) * distances[source]
        distances *= self._joining()
        distances[source] = np.inf
        target = int(distances.argmin())
        if leaving - distances[target] <= self._least:
            return False
        self._shift(point, source, -1)
        self._shift(point, target, 1)
        self.labels[point] = target
        return True

    def _shift(self, point: int, cluster: int, sign: int) -> None:
        """Add a point to a cluster, or take it away."""
        row = self._gram[point]
        self.within[cluster] += sign * (sign * row[point] + 2.0 * self.sums[cluster, point])
        self.sums[cluster] += sign * row
        self.sizes[cluster] += sign
        self._scale[cluster] = -2 / self.sizes[cluster]
        self.norms[cluster] = self.within[cluster] / self.sizes[cluster] ** 2

    def _joining(self) -> Float64:
        """Return the factors (k,) by which the inertia grows per squared distance of a point that joins."""
        factors: Float64 = self.sizes * (1 / (self.sizes + 1))
        return factors

    def _set_labels(self, labels: Int64) -> None:
        self.labels = labels
        self.sizes = self._problem.sizes(labels)
        self._scale = -2 / self.sizes

    def _set_within(self) -> None:
        own_sums = self.sums[self.labels, np.arange(len(self.labels))]
        self.within = np.bincount(self.labels, weights=own_sums, minlength=self._problem.k)
        self.norms = self.within / np.square(self.sizes)
