"""Results of k-means: the clusters of each problem, or what is wrong with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d4m_fast.errors import DataError
from d4m_fast.kernels.problem import Array, Float32, Float64, Int64

# Part of the squared norms: inertia that rounding leaves where every point equals its centroid.
DUPLICATES = 1e-12

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class KMeansResult:
    """The clusters of one problem of n points in D dimensions.

    Attributes:
        centroids: (k, D) float32, the mean of each cluster's points; of "minibatch", what its updates left.
        labels: (n,) int64, the cluster of each point.
        sizes: (k,) int64, the points of each cluster, all at least 1, but of "minibatch".
        inertia: sum of squared distances of the points to their centroids.
        inertia_per_cluster: (k,) float64, its parts.
        medoids: (k,) int64, the point nearest to each centroid among its cluster's (of "minibatch": among all); the
            lowest index of equals.
        iterations: assignment passes made, the last of which changed nothing unless `max_iter` came first.
        effective_k: k, or how many points are distinct where these are fewer: so many different centroids there are.
    """

    centroids: Float32
    labels: Int64
    sizes: Int64
    inertia: float
    inertia_per_cluster: Float64
    medoids: Int64
    iterations: int
    effective_k: int


Outcome = KMeansResult | DataError


class BadProblems(DataError):
    """Some problems could not be clustered; the others were.

    Attributes:
        results: of every problem in its place, None for the bad ones.
        errors: what is wrong with each bad one, by place.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.results = [None if isinstance(o, DataError) else o for o in outcomes]
        self.errors = {place: o for place, o in enumerate(outcomes) if isinstance(o, DataError)}
        first, *more = map(str, self.errors.values())
        super().__init__(first + (f" (and {len(more)} more: {'; '.join(more)})" if more else ""))


def summarize(centroids: Float32, labels: Int64, distances: Float64, iterations: int) -> KMeansResult:
    """Make a result of the means of the labels and the points' squared distances (n,) from them; `effective_k` is k."""
    k = len(centroids)
    per_cluster = np.bincount(labels, weights=distances, minlength=k).astype(np.float64)
    order = np.lexsort((distances, labels))  # stable: equals stay in index order
    sizes = np.bincount(labels, minlength=k)
    return KMeansResult(
        centroids=centroids,
        labels=labels,
        sizes=sizes,
        inertia=float(per_cluster.sum()),
        inertia_per_cluster=per_cluster,
        medoids=order[np.cumsum(sizes) - sizes],
        iterations=iterations,
        effective_k=k,
    )


def effective_k(points: Array, k: int, problem_id: int) -> int:
    """Count different points, at most k; log a warning where they are fewer."""
    distinct = len({row.tobytes() for row in points})
    if distinct < k:
        log.warning("class %d: only %d distinct points for k = %d", problem_id, distinct, k)
    return min(k, distinct)
