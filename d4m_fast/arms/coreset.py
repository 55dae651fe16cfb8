"""Coresets: real images that stand for a class, chosen one after another by their features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from d4m_fast.config.choices import Coreset


def herding(features: torch.Tensor, count: int) -> torch.Tensor:
    """Choose the points whose mean is nearest to the mean of all, after each choice (Welling, 2009; as in iCaRL).

    Args:
        features: (N, D) floating point; iCaRL (Rebuffi et al., 2017) normalises each to length 1 before.
        count: number of points, at most N; none is chosen twice.

    Returns:
        indices in the order of choice, (count,) int64; of equal points the first is chosen.
    """
    points = features.double()
    mean, total = points.mean(0), torch.zeros_like(points[0])
    indices = torch.empty(count, dtype=torch.int64, device=points.device)
    for step in range(count):
        # The mean of the chosen ones with x is off by (target - x) / (step + 1).
        distances = _squared_distances(points, (step + 1) * mean - total)
        distances[indices[:step]] = torch.inf
        indices[step] = distances.argmin()
        total = total + points[indices[step]]
    return indices


def k_center(features: torch.Tensor, count: int) -> torch.Tensor:
    """Choose the point nearest to the mean, then each time the one farthest from all chosen ones.

    The largest distance of a point to the nearest chosen one is at most twice the least that any choice has
    (Gonzalez, 1985; for active learning Sener & Savarese, 2018).

    Args:
        features: (N, D) floating point.
        count: number of points, at most N; none is chosen twice.

    Returns:
        indices in the order of choice, (count,) int64; of equal points the first is chosen.
    """
    points = features.double()
    indices = torch.empty(count, dtype=torch.int64, device=points.device)
    indices[0] = _squared_distances(points, points.mean(0)).argmin()
    nearest = _squared_distances(points, points[indices[0]])
    for step in range(1, count):
        nearest[indices[:step]] = -1  # farther than none, also where a point is there twice
        indices[step] = nearest.argmax()
        nearest = torch.minimum(nearest, _squared_distances(points, points[indices[step]]))
    return indices


def _squared_distances(points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    # Not by a matrix product, in which equal points may come to distances that differ in the last bit.
    return (points - centre).square_().sum(1)


CORESETS: Mapping[Coreset, Callable[[torch.Tensor, int], torch.Tensor]] = MappingProxyType(
    {"herding": herding, "kcenter": k_center}
)
