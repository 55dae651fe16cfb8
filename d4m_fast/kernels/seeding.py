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
ProductsWith = Callable[[Int64], Float32]


def greedy_trials(k: int) -> int:
    """Return scikit-learn's number of candidates per seed."""
    return 2 + int(np.log(k))


def choose_seeds(
    problem: Problem, rng: np.random.Generator, products_with: ProductsWith, trials: int
) -> tuple[Int64, Int64]:
    """Choose (k,) different points by k-means++; label the (n,) points by the nearest of them, the first of equals.

    Args:
        products_with: computes the inner products (candidates, n) of some points with all, in an array that is
            then written to.
        trials: candidates per seed.
    """
    seeds = _Seeds(problem, rng, products_with)
    while len(seeds.indices) < problem.k and seeds.closest.any():
        seeds.extend(rng, candidate_count(problem.k, len(problem.points), len(seeds.indices), trials), trials)
    return seeds.completed()


def candidate_count(k: int, n: int, seed_count: int, trials: int) -> int:
    """Return how many candidates to draw at once when `seed_count` of k seeds are chosen."""
    remaining = k - seed_count
    candidates = trials * min(max(FIRST_DRAW, GROWTH * seed_count), remaining + remaining // 8)
    return min(candidates, max(trials, DRAWN_ELEMENTS // n))


class _Seeds:
    """Chosen points and, of every point, the squared distance to the nearest of them and which it is."""

    def __init__(self, problem: Problem, rng: np.random.Generator, products_with: ProductsWith) -> None:
        n = len(problem.points)
        self._problem = problem
        self._products_with = products_with
        self._squares = problem.squares.astype(np.float32)
        self.closest = np.full(n, np.inf, np.float32)
        self._nearest = np.zeros(n, np.int64)
        self.indices: list[int] = []
        self._ones = np.ones(n, np.float32)
        first = _draw(self._ones, rng, 1)
        self._choose(int(first[0]), self._distances_to(first)[0])

    def extend(self, rng: np.random.Generator, count: int, trials: int) -> None:
        """Choose seeds from `count` points drawn now, as long as `trials` of them are kept for each. At least one."""
        candidates = _draw(self.closest, rng, count)
        limits = rng.random(count) * self.closest[candidates]
        distances = self._distances_to(candidates)
        start = 0
        while len(self.indices) < self._problem.k:
            accepted = np.flatnonzero(limits[start:] < self.closest[candidates[start:]])[:trials] + start
            if len(accepted) < trials:
                return
            # A product with ones adds a row up in less time than sum(axis=1).
            potentials = np.minimum(self.closest, distances[accepted]) @ self._ones
            best = accepted[potentials.argmin()]
            self._choose(int(candidates[best]), distances[best])
            start = int(accepted[-1]) + 1

    def completed(self) -> tuple[Int64, Int64]:
        """Return seeds and labels. With only duplicates left, any points do for the clusters that remain."""
        unused = np.setdiff1d(np.arange(len(self.closest)), self.indices)
        seeds = np.array([*self.indices, *unused[: self._problem.k - len(self.indices)]])
        labels = self._nearest.copy()
        labels[seeds] = np.arange(self._problem.k)
        return seeds, labels

    def _distances_to(self, rows: Int64) -> Float32:
        """Return squared distances of all points from some, (rows, n), to the precision of a float32 product."""
        # In place, as the products are by far the largest array here. Rounding may leave them below 0.
        distances = self._products_with(rows)
        distances *= -2
        distances += self._squares
        distances += self._squares[rows][:, None]
        return np.maximum(distances, 0, out=distances)

    def _choose(self, point: int, distances: Float32) -> None:
        # Computed anew where rounding drowns them, so that duplicates are at 0.
        points, squares = self._problem.points, self._problem.squares
        near = np.flatnonzero(distances <= FLOAT32_TIE * (squares + squares[point]))
        distances = distances.copy()
        distances[near] = squared_norms(points[near], points[point].astype(np.float64))
        closer = distances < self.closest
        self._nearest[closer] = len(self.indices)
        self.closest[closer] = distances[closer]
        self.indices.append(point)


def _draw(masses: Float32, rng: np.random.Generator, count: int) -> Int64:
    """Draw (count,) indices in proportion to their masses."""
    cumulative = np.cumsum(masses, dtype=np.float64)
    draws = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    # Rounding may put a draw behind the last index that has any mass.
    indices: Int64 = np.minimum(draws, np.flatnonzero(masses)[-1])
    return indices
