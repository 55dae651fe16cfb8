"""Checks of the kernels and their driver on a GPU against the CPU path.

They are small random problems, ragged, tied and duplicated, whose clusters the CPU path finds too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from operator import attrgetter
from typing import Any

import numpy as np

from d4m_fast.errors import DataError
from d4m_fast.kernels import device
from d4m_fast.kernels.backend import Backend, DeviceMethod
from d4m_fast.kernels.cuda import CupyBackend
from d4m_fast.kernels.kmeans import KMeansResult, kmeans
from d4m_fast.kernels.problem import Array
from d4m_fast.kernels.request import Options, requests

Results = Sequence[KMeansResult]

INERTIA = 1e-5  # relative
CENTROIDS = 1e-4  # absolute, of points of unit variance
PRODUCT = 2.0**-15  # of |a||b|


def selfcheck(backend: Backend | None = None, *, gpu: int = 0) -> dict[str, Any]:
    """Check a backend, by default that of a GPU.

    Returns:
        "checks": a list of {"name", "passed", "error"}, the error being the largest deviation.

    Raises:
        PreflightError: no CuPy.
    """
    if backend is None:
        backend = CupyBackend(gpu)
    verdicts = []
    for name, check in CHECKS.items():
        error, limit = check(backend)
        verdicts.append({"name": name, "passed": bool(error <= limit), "error": float(error)})
    return {"checks": verdicts}


def _mixture(n: int, d: int, groups: int, seed: int, mean: float = 0.0) -> Array:
    """Draw points of overlapping Gaussians, (n, d) float16."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, d)) * 0.5
    points = centres[rng.integers(0, groups, n)] + rng.standard_normal((n, d)) + mean
    return points.astype(np.float16)


def _problems() -> tuple[list[Array], list[int]]:
    """Draw ragged problems, with widths that are no multiple of anything, and one far off the origin."""
    sizes = ((130, 41, 6, 0.0), (97, 64, 9, 0.0), (64, 7, 4, 30.0), (33, 96, 33, 0.0))
    points = [_mixture(n, d, k, seed, mean) for seed, (n, d, k, mean) in enumerate(sizes)]
    return points, [k for _, _, k, _ in sizes]


def _starts(problems: Sequence[Array], ks: Sequence[int]) -> list[Array]:
    return [points[:: len(points) // k][:k].astype(np.float32) for points, k in zip(problems, ks, strict=True)]


def _solved(backend: Backend, problems: Sequence[Array], ks: Sequence[int], **options: Any) -> list[Any]:
    ids, starts = options.pop("ids", None), options.pop("starts", None)
    return [*device.solve(backend, requests(problems, ks, ids, starts), Options(**options))]


def _deviation(got: Results, expected: Results) -> float:
    """Return 0 where labels, sizes and medoids are equal and inertia and centroids close; else a number above 1."""
    worst = 0.0
    for result, reference in zip(got, expected, strict=True):
        exact = attrgetter("labels", "sizes", "medoids")
        is_equal = all(map(np.array_equal, exact(result), exact(reference)))
        is_close = abs(result.inertia - reference.inertia) <= INERTIA * reference.inertia
        distance = float(np.abs(result.centroids - reference.centroids).max())
        if not (is_equal and is_close and distance <= CENTROIDS):
            worst = max(worst, 1.0 + distance)
    return worst


def _product(backend: Backend) -> tuple[float, float]:
    worst = 0.0
    rng = np.random.default_rng(0)
    with backend.scope():
        for points in ("float16", "float32"):
            a = rng.standard_normal((3, 16, 256)).astype(points)
            b = rng.standard_normal((3, 64, 256)).astype(points)
            out = backend.xp.empty((3, 16, 64), "float32")
            backend.product(backend.array(a), backend.array(b), out)
            exact_a, exact_b = a.astype(float), b.astype(float)
            exact = np.einsum("smd,snd->smn", exact_a, exact_b)
            lengths = np.linalg.norm(exact_a, axis=2)[:, :, None] * np.linalg.norm(exact_b, axis=2)[:, None]
            worst = max(worst, float((np.abs(backend.host(out) - exact) / lengths).max()))
    return worst, PRODUCT


def _from_given_centres(method: DeviceMethod, points: str = "float16") -> Callable[[Backend], tuple[float, float]]:
    def check(backend: Backend) -> tuple[float, float]:
        halves, ks = _problems()
        problems = [values.astype(points) for values in halves]
        starts = _starts(problems, ks)
        got = _solved(backend, problems, ks, starts=starts, method=method, refine=False)
        return _deviation(got, kmeans(problems, ks, init=starts, method="direct")), 0.0

    return check


def _ties(backend: Backend) -> tuple[float, float]:
    """Count wrong labels on a grid, where many points are as far from one centre as from another."""
    grid = np.array([*product(range(8), range(8))], np.float16)
    return _count_wrong_labels(backend, grid, grid[[9, 14, 49, 54, 0, 63]]), 0.0


def _near_ties(backend: Backend) -> tuple[float, float]:
    """Count wrong labels among centres nearer to each other than float32 products tell apart."""
    points, rng = _mixture(120, 96, 5, 8), np.random.default_rng(8)
    return _count_wrong_labels(backend, points, points[:1] + 1e-5 * rng.standard_normal((4, 96))), 0.0


def _count_wrong_labels(backend: Backend, points: Array, centres: Array) -> float:
    """Count points that a single pass gives to another centre than float64 distances do, the first of equals."""
    start = centres.astype(np.float32)
    (result,) = _solved(backend, [points], [len(start)], starts=[start], method="direct", max_iter=1)
    distances = np.square(points[:, None].astype(float) - start).sum(axis=2)
    return float(np.count_nonzero(result.labels != distances.argmin(axis=1)))


def _empty_clusters(backend: Backend) -> tuple[float, float]:
    points = _mixture(70, 16, 5, 1)
    starts = [np.concatenate([points[:2], points[:1] + 100, points[:1] + 200]).astype(np.float32)]
    got = _solved(backend, [points], [4], starts=starts, method="direct")
    return _deviation(got, kmeans([points], 4, init=starts, method="direct")), 0.0


def _duplicates(backend: Backend) -> tuple[float, float]:
    """Return the inertia of 6 points, each 8 times: 0 if seeding finds all 6, which products hardly tell apart."""
    points = _mixture(6, 32, 6, 2) * np.float16(0.02)
    points[:, :4] = np.array([1000, -1000] * 3)[:, None]
    worst = 0.0
    for seed in range(4):
        (result,) = _solved(backend, [np.repeat(points, 8, axis=0)], [6], method="direct", seed=seed)
        worst = max(worst, result.inertia)
    return worst, 0.0


def _seeding(backend: Backend) -> tuple[float, float]:
    """Return the part of fits that differ from the CPU path's; a draw may fall on rounding, but not often."""
    points, seeds, different = _mixture(100, 24, 30, 3), 8, 0
    for seed in range(seeds):
        got = _solved(backend, [points], [20], method="direct", seed=seed)
        different += _deviation(got, kmeans([points], 20, method="direct", seed=seed)) > 0
    return different / seeds, 0.25


def _refinement(backend: Backend) -> tuple[float, float]:
    """Return the largest part of the inertia that moving a single point would still save."""
    problems, ks = _problems()
    savings = []
    for points, result in zip(problems, _solved(backend, problems, ks, method="gram"), strict=True):
        sizes, rows = result.sizes, np.arange(len(points))
        distances = np.square(points[:, None].astype(float) - result.centroids).sum(axis=2)
        # What a point adds to its own cluster, and would add to each of the others (see `gram._hartigan`).
        own_sizes = sizes[result.labels]
        weight = own_sizes / np.maximum(own_sizes - 1, 1)
        leaving = np.where(own_sizes > 1, weight * distances[rows, result.labels], 0.0)
        joining = sizes / (sizes + 1) * distances
        joining[rows, result.labels] = np.inf
        savings.append(float((leaving - joining.min(axis=1)).max() / max(result.inertia, 1e-9)))
    return max(savings), INERTIA


def _company(backend: Backend) -> tuple[float, float]:
    """Count values that change when a problem is solved alone; the problems have one padded shape."""
    problems = [_mixture(n, d, 9, seed) for seed, (n, d) in enumerate(((64, 40), (50, 35), (41, 40)))]
    ks = [8, 3, 5]
    together = _solved(backend, problems, ks, method="gram")
    changed = 0
    for place, (points, k) in enumerate(zip(problems, ks, strict=True)):
        (alone,) = _solved(backend, [points], [k], ids=[place], method="gram")
        for name in ("centroids", "labels", "inertia_per_cluster"):
            changed += int(np.count_nonzero(getattr(alone, name) != getattr(together[place], name)))
    return float(changed), 0.0


def _bad_values(backend: Backend) -> tuple[float, float]:
    """Count problems with a NaN or an infinity that were not refused, and refused ones without."""
    with_nan, sound, with_infinity = (_mixture(20, 8, 2, seed) for seed in (5, 7, 6))
    with_nan[7, 2], with_infinity[0, 0] = np.nan, np.inf
    got = _solved(backend, [with_nan, sound, with_infinity], [2, 2, 2], method="direct")
    is_refused = np.array([isinstance(result, DataError) for result in got])
    return float(np.count_nonzero(is_refused != (True, False, True))), 0.0


CHECKS: dict[str, Callable[[Backend], tuple[float, float]]] = {
    "product": _product,
    "Lloyd on the points": _from_given_centres("direct"),
    "Lloyd in Gram space": _from_given_centres("gram"),
    "float32 points": _from_given_centres("direct", "float32"),
    "ties": _ties,
    "near ties": _near_ties,
    "empty clusters": _empty_clusters,
    "duplicates": _duplicates,
    "seeding": _seeding,
    "refinement": _refinement,
    "company": _company,
    "bad values": _bad_values,
}
