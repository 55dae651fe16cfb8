"""k-means in Gram space: G = X X^T once, then no step depends on the points' width.

With weights w and S = G diag(w) Z, Z the (n, k) indicator of the labels, the squared distance of point i to the mean
of cluster c of mass m_c is G_ii - 2 S_ic / m_c + sum_{j in c} w_j S_jc / m_c^2. Lloyd's passes and Hartigan's moves
read and update S alone.
"""

from __future__ import annotations

import numpy as np

from d4m_fast.kernels import seeding
from d4m_fast.kernels.direct import nearest_exactly
from d4m_fast.kernels.problem import FLOAT32_TIE, Array, Float32, Float64, Int64, Problem, means, weighted_sum

LARGEST_GRAM = 1 << 30  # bytes
GAIN = 1e-6
"""Of the mean squared norm: moves that gain less than float32 products mostly resolve are not made."""
BLUR = 1e-7
"""Of the mean squared norm: about the error of a float32 product."""
MAX_SWEEPS = 100
PASSES = 3
"""Passes' worth of products that Lloyd takes on the points: most touch only the clusters that changed."""


def pays(n: int, d: int, k: int, *, refine: bool, seedings: int) -> bool:
    """The rule of method "auto".

    To refine needs Gram space, and pays where that has no more elements than the points: wide points are where Lloyd
    stops early. Without, it pays where n^2 d operations of the symmetric product are fewer than those on the points,
    2 n d k for each of `PASSES` passes' worth of products and for one more where it seeds, `seedings` times (0: initial
    centres are given).
    """
    passes = seedings * (1 + PASSES) if seedings else PASSES
    direct = passes * 2.0 * n * d * k
    return 4 * n * n <= LARGEST_GRAM and (n <= d if refine else float(n) * n * d < direct)


def gram_matrix(problem: Problem) -> Float32:
    """(n, n) inner products; of a matrix with itself, BLAS computes one half."""
    gram: Float32 = problem.points @ problem.points.T
    return gram


def choose_seeds(problem: Problem, gram: Float32, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """(k,) points chosen by greedy k-means++ and (n,) labels, the nearest of them."""
    squares = problem.squares.astype(np.float32)

    def distances_to(rows: Int64) -> Float32:
        found: Float32 = gram[rows]
        found *= -2
        found += squares
        found += squares[rows][:, None]
        return np.maximum(found, 0, out=found)

    return seeding.choose_seeds(problem, rng, distances_to, seeding.greedy_trials(problem.k))


def refine(
    problem: Problem, gram: Float32, labels: Int64, max_iter: int, *, by_hartigan: bool
) -> tuple[Int64, int, bool]:
    """Lloyd, then by Hartigan's moves; labels, passes made, and whether they are known to be Lloyd's fixed point.

    Stops before a cluster would be left empty: what fills it is decided on the points.
    """
    clusters = _Clusters(problem, gram, labels)
    passes = _lloyd(clusters, max_iter)
    if by_hartigan and passes < max_iter:
        passes += _hartigan(clusters)
    return clusters.labels, passes, passes < max_iter and _is_fixed(problem, clusters)


def _lloyd(clusters: _Clusters, max_iter: int) -> int:
    """Passes. Points whose scores are equal but for rounding stay where they are."""
    here = np.arange(len(clusters.labels))
    for iteration in range(1, max_iter + 1):
        scores = clusters.scores()
        nearest = scores.argmin(axis=0)
        gain = scores[clusters.labels, here] - scores[nearest, here]
        new = np.where(gain > clusters.blur, nearest, clusters.labels)
        emptied = np.bincount(new, minlength=len(clusters.sizes)).min() == 0
        if emptied or np.array_equal(new, clusters.labels):
            return iteration
        clusters.relabel(new)
    return max_iter


def _hartigan(clusters: _Clusters) -> int:
    """Move single points while that lowers the inertia; sweeps (Hartigan 1975; Telgarsky, Vattani 2010).

    A point of weight w leaves cluster a for b when m_b w / (m_b + w) |x - b|^2 < m_a w / (m_a - w) |x - a|^2. What it
    cannot improve Lloyd cannot either, but not the other way round.
    """
    for sweep in range(1, MAX_SWEEPS + 1):
        moved = sum(clusters.move(int(point)) for point in clusters.movable())
        if not moved:
            return sweep
    return MAX_SWEEPS


def _is_fixed(problem: Problem, clusters: _Clusters) -> bool:
    """Whether every point is certainly nearest to its own mean: by S where its rounding allows, else by the points."""
    scores, labels = clusters.scores(), clusters.labels
    here = np.arange(len(labels))
    limit = scores[labels, here] + clusters.rounding
    scores[labels, here] = np.inf
    unclear = np.flatnonzero(scores.min(axis=0) <= limit)
    if not len(unclear):
        return True
    scale = clusters.rounding[unclear] / FLOAT32_TIE
    found = nearest_exactly(problem.points[unclear], means(problem, labels), scale)
    return bool(np.array_equal(found, labels[unclear]))


class _Clusters:
    """Labels and what follows from them: `sizes`, `masses` and `norms` of the means (k,), `sums` S^T (k, n).

    `rounding` (n,) bounds the error that float32 products leave in the difference of two of a point's scores, `blur` is
    its usual size.
    """

    def __init__(self, problem: Problem, gram: Float32, labels: Int64) -> None:
        self._problem = problem
        self._gram = gram
        self._weights = np.ones(len(labels)) if problem.weights is None else problem.weights
        longest = np.sqrt(problem.squares.max())
        self.rounding = 2 * FLOAT32_TIE * (longest * np.sqrt(problem.squares) + longest**2)
        self._least, self.blur = (part * float(problem.squares.mean()) for part in (GAIN, BLUR))
        self.sums = np.empty((problem.k, len(labels)))
        self._set_labels(labels.copy())
        for c in range(problem.k):
            self.sums[c] = self._sum(labels == c)
        self._set_within()

    def scores(self) -> Float64:
        """(k, n) squared distances to the means, less the points' squared norms."""
        scores = self.sums * self._scale[:, None]
        scores += self.norms[:, None]
        return scores

    def relabel(self, new: Int64) -> None:
        """Only clusters that gained or lost points are summed, over those points where they are few."""
        moved, old = new != self.labels, self.labels
        self._set_labels(new)
        for c in np.union1d(new[moved], old[moved]):
            gained, lost = moved & (new == c), moved & (old == c)
            if 2 * np.count_nonzero(gained | lost) < self.sizes[c]:
                self.sums[c] += self._sum(gained) - self._sum(lost)
            else:
                self.sums[c] = self._sum(new == c)
        self._set_within()

    def movable(self) -> Int64:
        """Points that gain from a move as things are now."""
        here = np.arange(len(self.labels))
        distances = self.scores()
        distances += self._problem.squares
        masses, sizes, weights = self.masses[self.labels], self.sizes[self.labels], self._weights
        left = np.where(sizes > 1, masses - weights, np.inf)
        leaving = masses * weights / left * distances[self.labels, here]
        distances[self.labels, here] = np.inf
        distances *= self._joining()
        return np.flatnonzero(leaving - distances.min(axis=0) > self._least * weights)

    def move(self, point: int) -> bool:
        """Move one point to its best other cluster, if that gains anything; a cluster's only point stays."""
        old, weight = self.labels[point], self._weights[point]
        if self.sizes[old] == 1:
            return False
        column = self.sums[:, point]
        distances = column * self._scale
        distances += self.norms
        distances += self._problem.squares[point]
        leaving = self.masses[old] * weight / (self.masses[old] - weight) * distances[old]
        distances *= self.masses * (weight / (self.masses + weight))
        distances[old] = np.inf
        new = int(distances.argmin())
        if leaving - distances[new] <= self._least * weight:
            return False
        self._shift(point, old, -weight)
        self._shift(point, new, weight)
        self.labels[point] = new
        return True

    def _shift(self, point: int, cluster: int, weight: float) -> None:
        """Add a point's weight to a cluster, or take it away."""
        row = self._gram[point]
        self.within[cluster] += weight * (weight * row[point] + 2.0 * self.sums[cluster, point])
        self.sums[cluster] += weight * row
        self.sizes[cluster] += 1 if weight > 0 else -1
        self.masses[cluster] += weight
        self._scale[cluster] = -2 / self.masses[cluster]
        self.norms[cluster] = self.within[cluster] / self.masses[cluster] ** 2

    def _joining(self) -> Float64:
        """(k, n), or (k, 1) where all weights are 1: what a squared distance counts for when a point joins."""
        masses = self.masses[:, None]
        weights = np.ones(1) if self._problem.weights is None else self._weights
        return masses * (weights / (masses + weights))

    def _set_labels(self, labels: Int64) -> None:
        self.labels = labels
        self.sizes = np.bincount(labels, minlength=self._problem.k)
        self.masses = self._problem.masses(labels)
        self._scale = -2 / self.masses

    def _set_within(self) -> None:
        own = self.sums[self.labels, np.arange(len(self.labels))] * self._weights
        self.within = np.bincount(self.labels, weights=own, minlength=self._problem.k)
        self.norms = self.within / np.square(self.masses)

    def _sum(self, members: Array) -> Float64:
        """(n,) inner products of all points with the weighted sum of some; G is symmetric."""
        return weighted_sum(self._gram[members], self._problem.weights_of(members))
