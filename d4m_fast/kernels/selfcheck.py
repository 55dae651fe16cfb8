"""What a GPU owner runs once: the kernels and their driver against the CPU path, and their speed against the roofline.

Checks are small random problems, ragged, tied, weighted and duplicated, whose clusters the CPU path finds too. Timings
are of a batch of ImageNet's shape.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from d4m_fast.errors import DataError
from d4m_fast.kernels import device, roofline
from d4m_fast.kernels.backend import Backend, DeviceMethod, Shape
from d4m_fast.kernels.batch import Batch
from d4m_fast.kernels.cuda import CupyBackend
from d4m_fast.kernels.kmeans import KMeansResult, kmeans
from d4m_fast.kernels.problem import Array
from d4m_fast.kernels.request import Options, requests

Results = Sequence[KMeansResult]

INERTIA = 1e-5  # relative
CENTROIDS = 1e-4  # absolute, of points of unit variance
PRODUCT = 2.0**-15  # of |a||b|
IMAGENET = Shape("float16", "gram", 1344, 16_384, 56)  # 1,300 points and 50 clusters, padded
REPEATS = 7


def selfcheck(backend: Backend | None = None, *, gpu: int = 0) -> dict[str, Any]:
    """Check a backend, by default a GPU's by its number, which is timed as well.

    Returns:
        "checks": a list of {"name", "passed", "error"}, the error being the largest deviation; "timings": a list of
        {"name", "seconds", "roofline_seconds", "share"}, the roofline an H100's.

    Raises:
        PreflightError: no CuPy.
    """
    chosen = CupyBackend(gpu) if backend is None else backend
    found = [_verdict(name, check, chosen) for name, check in CHECKS.items()]
    timings = list(_timings(chosen)) if isinstance(chosen, CupyBackend) else []
    return {"checks": found, "timings": timings}


def _verdict(name: str, check: Callable[[Backend], tuple[float, float]], backend: Backend) -> dict[str, Any]:
    error, limit = check(backend)
    return {"name": name, "passed": bool(error <= limit), "error": float(error)}


def _mixture(n: int, d: int, groups: int, seed: int, mean: float = 0.0) -> Array:
    """Overlapping Gaussians, (n, d) float16."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, d)) * 0.5
    points = centres[rng.integers(0, groups, n)] + rng.standard_normal((n, d)) + mean
    return points.astype(np.float16)


def _problems() -> tuple[list[Array], list[int]]:
    """Ragged, with widths that are no multiple of anything, and one far off the origin."""
    sizes = ((130, 41, 6, 0.0), (97, 64, 9, 0.0), (64, 7, 4, 30.0), (33, 96, 33, 0.0))
    points = [_mixture(n, d, k, seed, mean) for seed, (n, d, k, mean) in enumerate(sizes)]
    return points, [k for _, _, k, _ in sizes]


def _starts(problems: Sequence[Array], ks: Sequence[int]) -> list[Array]:
    return [points[:: len(points) // k][:k].astype(np.float32) for points, k in zip(problems, ks, strict=True)]


def _solved(backend: Backend, problems: Sequence[Array], ks: Sequence[int], **options: Any) -> list[Any]:
    given = (options.pop(name, None) for name in ("ids", "starts", "weights"))
    return [*device.solve(backend, requests(problems, ks, *given), Options(**options))]


def _deviation(got: Results, expected: Results) -> float:
    """0 where labels, sizes and medoids are equal and inertia and centroids close; else how far off, at least 1."""
    wrong = 0.0
    for one, other in zip(got, expected, strict=True):
        same = all(np.array_equal(getattr(one, x), getattr(other, x)) for x in ("labels", "sizes", "medoids"))
        off = abs(one.inertia - other.inertia) > INERTIA * other.inertia
        far = float(np.abs(one.centroids - other.centroids).max())
        wrong = max(wrong, 0.0 if same and not off and far <= CENTROIDS else 1.0 + far)
    return wrong


def _product(backend: Backend) -> tuple[float, float]:
    worst = 0.0
    rng = np.random.default_rng(0)
    with backend.scope():
        for points in ("float16", "float32"):
            a, b = (rng.standard_normal((3, rows, 256)).astype(points) for rows in (16, 64))
            out = backend.xp.empty((3, 16, 64), "float32")
            backend.product(backend.array(a), backend.array(b), out)
            exact = np.einsum("smd,snd->smn", a.astype(float), b.astype(float))
            lengths = (
                np.linalg.norm(a.astype(float), axis=2)[:, :, None] * np.linalg.norm(b.astype(float), axis=2)[:, None]
            )
            worst = max(worst, float((np.abs(backend.host(out) - exact) / lengths).max()))
    return worst, PRODUCT


def _from_given_centres(method: DeviceMethod) -> Callable[[Backend], tuple[float, float]]:
    def check(backend: Backend) -> tuple[float, float]:
        problems, ks = _problems()
        starts = _starts(problems, ks)
        got = _solved(backend, problems, ks, starts=starts, method=method, refine=False)
        return _deviation(got, kmeans(problems, ks, init=starts, method="direct")), 0.0

    return check


def _float32(backend: Backend) -> tuple[float, float]:
    problems, ks = _problems()
    wide = [points.astype(np.float32) for points in problems]
    starts = _starts(problems, ks)
    got = _solved(backend, wide, ks, starts=starts, method="direct")
    return _deviation(got, kmeans(wide, ks, init=starts, method="direct")), 0.0


def _ties(backend: Backend) -> tuple[float, float]:
    """A grid, on which many points are as far from one centre as from another."""
    grid = np.array([[x, y] for x in range(8) for y in range(8)], np.float16)
    starts = [grid[[9, 14, 49, 54, 0, 63]].astype(np.float32)]
    got = _solved(backend, [grid], [6], starts=starts, method="direct", max_iter=1)
    distances = np.linalg.norm(grid[:, None].astype(float) - starts[0], axis=2)
    return float(np.count_nonzero(got[0].labels != distances.argmin(axis=1))), 0.0


def _near_ties(backend: Backend) -> tuple[float, float]:
    """Wrong labels among centres nearer to each other than float32 products tell apart."""
    points, rng = _mixture(120, 96, 5, 8), np.random.default_rng(8)
    starts = [(points[:1] + 1e-5 * rng.standard_normal((4, 96))).astype(np.float32)]
    got = _solved(backend, [points], [4], starts=starts, method="direct", max_iter=1)
    distances = np.square(points[:, None].astype(float) - starts[0]).sum(axis=2)
    return float(np.count_nonzero(got[0].labels != distances.argmin(axis=1))), 0.0


def _empty_clusters(backend: Backend) -> tuple[float, float]:
    points = _mixture(70, 16, 5, 1)
    starts = [np.concatenate([points[:2], points[:1] + 100, points[:1] + 200]).astype(np.float32)]
    got = _solved(backend, [points], [4], starts=starts, method="direct")
    return _deviation(got, kmeans([points], 4, init=starts, method="direct")), 0.0


def _duplicates(backend: Backend) -> tuple[float, float]:
    """Of 6 points each 8 times, seeding finds all 6, though products hardly tell them apart: inertia 0."""
    points = _mixture(6, 32, 6, 2) * np.float16(0.02)
    points[:, :4] = np.array([1000, -1000] * 3)[:, None]
    found = [_solved(backend, [np.repeat(points, 8, axis=0)], [6], method="direct", seed=seed)[0] for seed in range(4)]
    return float(max(result.inertia for result in found)), 0.0


def _seeding(backend: Backend) -> tuple[float, float]:
    """The part of whole fits that are not the CPU path's; a draw may fall on rounding, but not often."""
    points, seeds = _mixture(100, 24, 30, 3), range(8)
    expected = [kmeans([points], 20, method="direct", seed=seed) for seed in seeds]
    got = [_solved(backend, [points], [20], method="direct", seed=seed) for seed in seeds]
    return float(np.mean([_deviation(*pair) > 0 for pair in zip(got, expected, strict=True)])), 0.25


def _refinement(backend: Backend) -> tuple[float, float]:
    """By how much, of the inertia, moving a single point could still lower it."""
    problems, ks = _problems()
    got = _solved(backend, problems, ks, method="gram")
    return max(_best_move(*pair) for pair in zip(problems, got, strict=True)), INERTIA


def _best_move(points: Array, result: KMeansResult) -> float:
    sizes, here = result.sizes, np.arange(len(points))
    distances = np.square(points[:, None].astype(float) - result.centroids).sum(axis=2)
    own = sizes[result.labels]
    leaving = np.where(own > 1, own / np.maximum(own - 1, 1) * distances[here, result.labels], 0.0)
    joining = sizes / (sizes + 1) * distances
    joining[here, result.labels] = np.inf
    return float((leaving - joining.min(axis=1)).max() / max(result.inertia, 1e-9))


def _weights(backend: Backend) -> tuple[float, float]:
    problems, ks = _problems()
    scales = (1.0, 1e-7, 1e6, 1.0)  # a result does not depend on it
    drawn = (np.random.default_rng(n).uniform(0.5, 3, len(points)) for n, points in enumerate(problems))
    weights = [scale * values for scale, values in zip(scales, drawn, strict=True)]
    starts = _starts(problems, ks)
    got = _solved(backend, problems, ks, starts=starts, weights=weights, method="gram")
    return _deviation(got, kmeans(problems, ks, init=starts, weights=weights, method="gram")), 0.0


def _company(backend: Backend) -> tuple[float, float]:
    """Values that change when a problem is solved alone; the problems have one padded shape."""
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
    """Problems with a NaN or an infinity that were not refused, or refused ones without."""
    bad = _mixture(20, 8, 2, 5), _mixture(20, 8, 2, 6)
    bad[0][7, 2], bad[1][0, 0] = np.nan, np.inf
    got = _solved(backend, [bad[0], _mixture(20, 8, 2, 7), bad[1]], [2, 2, 2], method="direct")
    return float(sum(isinstance(x, DataError) != wrong for x, wrong in zip(got, (True, False, True), strict=True))), 0.0


CHECKS: dict[str, Callable[[Backend], tuple[float, float]]] = {
    "product": _product,
    "Lloyd on the points": _from_given_centres("direct"),
    "Lloyd in Gram space": _from_given_centres("gram"),
    "float32 points": _float32,
    "ties": _ties,
    "near ties": _near_ties,
    "empty clusters": _empty_clusters,
    "duplicates": _duplicates,
    "seeding": _seeding,
    "refinement": _refinement,
    "weights": _weights,
    "company": _company,
    "bad values": _bad_values,
}


def _timings(backend: CupyBackend) -> Iterator[dict[str, Any]]:
    """Of a full batch of random points in 50 clusters, by row index."""
    shape = IMAGENET
    n, d, k = 1300, 16_384, 50
    with backend.scope():
        batch = _timed_batch(backend, shape, n, d, k)
        labels = np.tile(np.arange(shape.n) % k, (batch.slots, 1))
        steps: dict[str, tuple[Callable[[], object], float]] = {
            "Gram product": (batch.multiply, roofline.product_seconds(n, d, 2, roofline.H100)),
            "Lloyd pass": (lambda: _lloyd_pass(batch), roofline.pass_seconds(n, d, k, 2, roofline.H100)),
            "segmented sums": (batch.set_all_means, roofline.H100.seconds(2.0 * n * d)),
        }
        for name, (step, best) in steps.items():
            batch.reset(1000)
            batch.set_labels(labels)
            batch.set_all_means()
            yield _timing(name, backend, step, best * batch.slots)


def _timed_batch(backend: CupyBackend, shape: Shape, n: int, d: int, k: int) -> Batch:
    points = backend.array(np.random.default_rng(0).standard_normal((n, d), dtype=np.float32).astype(np.float16))
    slots = shape.slots(backend.workspace)
    batch = Batch(backend, shape, [points] * slots, [k] * slots)
    batch.centre()
    batch.measure()
    return batch


def _lloyd_pass(batch: Batch) -> None:
    batch.resume()
    batch.pass_on_points()
    batch.set_all_means()


def _timing(name: str, backend: CupyBackend, step: Callable[[], object], best: float) -> dict[str, Any]:
    """Median of `REPEATS` after one to warm up."""
    seconds = statistics.median([backend.seconds(step) for _ in range(1 + REPEATS)][1:])
    return {"name": name, "seconds": seconds, "roofline_seconds": best, "share": best / seconds}
