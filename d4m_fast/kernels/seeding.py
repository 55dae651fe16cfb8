"""k-means++ (Arthur and Vassilvitskii, SODA 2007), exactly, but with its products in large batches.

One seed at a time, each new one costs a product of all points with a few. Here many points are drawn at once in
proportion to their squared distances D_0 so far and kept, when their turn comes, with probability D_t / D_0, D_t being
what the seeds chosen meanwhile left: those kept are drawn in proportion to D_t (rejection sampling; as Cohen-Addad et
al., NeurIPS 2020, but from exact distances). Taking the best of `trials` candidates is scikit-learn's greedy variant.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from d4m_fast.kernels.problem import FLOAT32_TIE, Float32, Int64, Problem, squared_norms

FIRST_DRAW = 8  # seeds' worth of candidates
GROWTH = 3  # then candidates for so many times the seeds there are: D_t / D_0 falls with their number
DRAWN_ELEMENTS = 1 << 22  # float32 distances of candidates: 16 MB
DistancesTo = Callable[[Int64], Float32]


def greedy_trials(k: int) -> int:
    """Candidates per seed, scikit-learn's number."""
    return 2 + int(np.log(k))


def choose_seeds(
    problem: Problem, rng: np.random.Generator, distances_to: DistancesTo, trials: int
) -> tuple[Int64, Int64]:
    """(k,) different points chosen by k-means++, and (n,) labels: the nearest of them, the first of equals.

    Args:
        distances_to: squared distances (candidates, n) of all points to some, to the precision of float32 products.
        trials: candidates per seed.
    """
    seeds = _Seeds(problem, rng, distances_to)
    while len(seeds.chosen) < problem.k and seeds.closest.any():
        seeds.extend(rng, wanted(problem.k, len(problem.points), len(seeds.chosen), trials), trials)
    return seeds.completed()


def wanted(k: int, n: int, chosen: int, trials: int) -> int:
    """Candidates to draw at once when so many of k seeds are chosen."""
    remaining = k - chosen
    candidates = trials * min(max(FIRST_DRAW, GROWTH * chosen), remaining + remaining // 8)
    return min(candidates, max(trials, DRAWN_ELEMENTS // n))


class _Seeds:
    """Chosen points and, of every point, the squared distance to the nearest of them and which it is."""

    def __init__(self, problem: Problem, rng: np.random.Generator, distances_to: DistancesTo) -> None:
        n = len(problem.points)
        self._problem = problem
        self._distances_to = distances_to
        self._weights = np.ones(n, np.float32) if problem.weights is None else problem.weights.astype(np.float32)
        self.closest = np.full(n, np.inf, np.float32)
        self._nearest = np.zeros(n, np.int64)
        self.chosen: list[int] = []
        first = _draw(self._weights, rng, 1)
        self._choose(int(first[0]), distances_to(first)[0])

    def extend(self, rng: np.random.Generator, count: int, trials: int) -> None:
        """Choose seeds from `count` points drawn now, as long as `trials` of them are kept for each. At least one."""
        drawn_with = self.closest * self._weights
        candidates = _draw(drawn_with, rng, count)
        limits = rng.random(count) * drawn_with[candidates]
        distances = self._distances_to(candidates)
        start = 0
        while len(self.chosen) < self._problem.k:
            rest = candidates[start:]
            kept = np.flatnonzero(limits[start:] < self.closest[rest] * self._weights[rest])[:trials] + start
            if len(kept) < trials:
                return
            best = kept[(np.minimum(self.closest, distances[kept]) @ self._weights).argmin()]
            self._choose(int(candidates[best]), distances[best])
            start = int(kept[-1]) + 1

    def completed(self) -> tuple[Int64, Int64]:
        """Seeds and labels. With only duplicates left, any points do for the clusters that remain."""
        others = np.setdiff1d(np.arange(len(self.closest)), self.chosen)
        chosen = np.array([*self.chosen, *others[: self._problem.k - len(self.chosen)]])
        labels = self._nearest.copy()
        labels[chosen] = np.arange(self._problem.k)
        return chosen, labels

    def _choose(self, point: int, distances: Float32) -> None:
        distances = self._settled(point, distances)
        closer = distances < self.closest
        self._nearest[closer] = len(self.chosen)
        self.closest[closer] = distances[closer]
        self.chosen.append(point)

    def _settled(self, chosen: int, distances: Float32) -> Float32:
        """The distances to the chosen point, exact where rounding drowns them: duplicates are at 0."""
        points, squares = self._problem.points, self._problem.squares
        near = np.flatnonzero(distances <= FLOAT32_TIE * (squares + squares[chosen]))
        settled = distances.copy()
        settled[near] = squared_norms(points[near], points[chosen].astype(np.float64))
        return settled


def _draw(masses: Float32, rng: np.random.Generator, count: int) -> Int64:
    """(count,) indices in proportion to their masses."""
    cumulative = np.cumsum(masses, dtype=np.float64)
    draws = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    drawn: Int64 = np.minimum(draws, np.flatnonzero(masses)[-1])
    return drawn
