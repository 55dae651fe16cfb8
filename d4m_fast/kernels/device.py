"""k-means of many problems on a GPU: the same as kernels/kmeans.py, in batches of problems of one padded shape.

Numerics. float16 products are summed in float32 and leave the order of two centroids open where their error bound does;
what is open is decided by float64 distances, and of equals the lowest index is taken. Sums, norms, weights and inertia
are float64, and sums of up to 8,192 unweighted float16 points are exact. So labels do not depend on how a product is
rounded, nor on the batch; where seeding and Gram space read the products themselves, these have a shape of their own.

Memory. Points are copied into a batch of at most 2 GiB (or one problem); besides them a problem has float64 centroids,
their float16 halves, two float32 scores per point and cluster, and in Gram space the (n, n) float32 products.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from d4m_fast.errors import DataError, UsageError
from d4m_fast.kernels.batch import Backend, Batch, DeviceArray, Shape, padded
from d4m_fast.kernels.direct import trials_for
from d4m_fast.kernels.kmeans import KMeansResult
from d4m_fast.kernels.problem import LARGEST_SQUARE, Array, Float32, Float64, Int64, _check_shape, generator
from d4m_fast.kernels.roofline import gram_pays

LARGEST_K = 65_535  # blocks along an axis of a grid

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """As of `kmeans`."""

    method: str = "auto"
    seed: int = 0
    n_init: int = 1
    max_iter: int = 300
    refine: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One problem, its points (n, D) on the device."""

    points: DeviceArray
    k: int
    id: int
    start: Array | None


def solve(
    backend: Backend,
    problems: Sequence[Any],
    ks: Sequence[int],
    ids: Sequence[int],
    starts: Sequence[Array | None],
    options: Options,
) -> list[KMeansResult | DataError]:
    """Cluster each problem; arguments as of `kmeans`. The result of each, in NumPy, or what is wrong with it.

    Raises:
        UsageError: method "minibatch", which runs on the CPU.
    """
    if options.method == "minibatch":
        raise UsageError("k-means method 'minibatch' runs on the CPU: move the points there")
    with backend.scope():
        given = zip(problems, ks, ids, starts, strict=True)
        tasks = [_task(backend.array(points), k, key, start) for points, k, key, start in given]
        results = {position: task for position, task in enumerate(tasks) if isinstance(task, DataError)}
        found: dict[int, KMeansResult | DataError] = {**results}
        sound = {position: task for position, task in enumerate(tasks) if isinstance(task, Task)}
        for shape, lot in _lots(sound, options):
            found.update(zip(lot, _solve_lot(backend, shape, list(lot.values()), options), strict=True))
    return [found[position] for position in range(len(tasks))]


def _task(points: DeviceArray, k: int, key: int, start: Any) -> Task | DataError:
    try:
        _check_shape(points, k, key)
    except DataError as error:
        return error
    if k > LARGEST_K:
        return DataError(f"class {key}: k = {k} is more than {LARGEST_K}, the most on a GPU")
    return Task(points, k, key, start)


def _lots(tasks: Mapping[int, Task], options: Options) -> Iterator[tuple[Shape, dict[int, Task]]]:
    """Tasks of one shape by position, at most as many as there are slots."""
    groups: dict[Shape, list[int]] = {}
    for position, task in tasks.items():
        groups.setdefault(shape_of(task, options), []).append(position)
    for shape, positions in groups.items():
        for start in range(0, len(positions), shape.slots):
            yield shape, {position: tasks[position] for position in positions[start : start + shape.slots]}


def shape_of(task: Task, options: Options) -> Shape:
    n, d = task.points.shape
    points = str(task.points.dtype)
    return Shape(points, _method(task, options), padded(n, 64), padded(d, 8), padded(task.k, 8))


def _method(task: Task, options: Options) -> Literal["direct", "gram", "closed"]:
    n, d = task.points.shape
    if task.start is None and task.k in (1, n):
        return "closed"
    gram = options.method == "gram"
    if options.method == "auto":
        gram = gram_pays(n, d, task.k, task.points.dtype.itemsize, refine=options.refine)
    return "gram" if gram else "direct"


def _solve_lot(
    backend: Backend, shape: Shape, lot: Sequence[Task], options: Options
) -> list[KMeansResult | DataError]:
    batch = Batch(backend, shape, [task.points for task in lot], [task.k for task in lot])
    errors = [_wrong_values(task, row) for task, row in zip(lot, batch.measure(), strict=False)]
    for slot, error in enumerate(errors):
        if error is not None:
            batch.drop(slot)
    batch.centre()
    if shape.method == "gram":
        batch.multiply()
    best = _best_of_runs(backend, batch, lot, options)
    return [error if error is not None else result for error, result in zip(errors, best, strict=True)]


def _wrong_values(task: Task, squares: Float64) -> DataError | None:
    if not np.isfinite(squares).all():
        return DataError(f"class {task.id}: NaN or infinite values in its points")
    if squares.max() > LARGEST_SQUARE:
        return DataError(f"class {task.id}: values too large for float32 distances")
    return None


def _best_of_runs(backend: Backend, batch: Batch, lot: Sequence[Task], options: Options) -> list[KMeansResult]:
    generators = [generator(options.seed, task.id) for task in lot]
    best: list[KMeansResult] = []
    for run in range(1 if batch.shape.method == "closed" else options.n_init):
        _run(batch, lot, generators, options)
        found = _results(backend, batch, lot)
        pairs = zip(best if run else found, found, strict=True)
        best = [min(pair, key=lambda result: result.inertia) for pair in pairs]
    for task, result in zip(lot, best, strict=True):
        _warn_of_duplicates(backend, task, result)
    return best


def _run(batch: Batch, lot: Sequence[Task], generators: Sequence[np.random.Generator], options: Options) -> None:
    """One seeding and what follows."""
    batch.reset(options.max_iter)
    if batch.shape.method == "closed":
        batch.set_labels(_closed_form(lot, batch.shape))
        batch.set_all_means()
    else:
        if lot[0].start is None:
            batch.seed(*_draws(lot, generators, batch.shape))
        _gram_run(batch, lot, options) if batch.shape.method == "gram" else _start(batch, lot)
        _settle(batch)
    batch.measure_distances()


def _closed_form(lot: Sequence[Task], shape: Shape) -> Int64:
    """The optimum for k of 1 and of n."""
    ks = np.ones((shape.slots, 1), np.int64)
    ks[: len(lot), 0] = [task.k for task in lot]
    return np.arange(shape.n) % ks


def _settle(batch: Batch) -> None:
    batch.resume()
    while not batch.finished():
        batch.pass_on_points()
        batch.set_means()


def _gram_run(batch: Batch, lot: Sequence[Task], options: Options) -> None:
    """Lloyd and Hartigan in Gram space; what is left for Lloyd on the points is what products cannot settle."""
    if lot[0].start is None:
        batch.label_by_seeds()
    else:
        _start(batch, lot)
        batch.resume()
        batch.pass_on_points()
    batch.resume()
    while not batch.finished():
        batch.pass_on_products()
    if options.refine:
        batch.refine()
    batch.set_all_means()


def _start(batch: Batch, lot: Sequence[Task]) -> None:
    if lot[0].start is None:
        batch.set_seeds()
    for slot, task in enumerate(lot):
        if task.start is not None:
            batch.set_centroids(slot, task.start)


def _draws(
    lot: Sequence[Task], generators: Sequence[np.random.Generator], shape: Shape
) -> tuple[Int64, Float64]:
    """What `direct.choose_seeds` draws: the first seeds (B,), and numbers in [0, 1), (B, K, T)."""
    first = np.zeros(shape.slots, np.int64)
    uniforms = np.zeros((shape.slots, shape.k, shape.trials))
    for slot, (task, rng) in enumerate(zip(lot, generators, strict=True)):
        trials = trials_for(task.k)
        first[slot] = rng.integers(task.points.shape[0])
        uniforms[slot, : task.k - 1, :trials] = rng.random((task.k - 1, trials))
    return first, uniforms


def _results(backend: Backend, batch: Batch, lot: Sequence[Task]) -> list[KMeansResult]:
    labels, distances, passes = (backend.host(x) for x in (batch.labels, batch.distances, batch.passes))
    found = []
    for slot, task in enumerate(lot):
        n, d = task.points.shape
        centroids = backend.host(batch.centroids[slot, : task.k, :d].astype("float32"))
        row = labels[slot, :n].astype(np.int64)
        found.append(_result(centroids, row, distances[slot, :n], int(passes[slot])))
    return found


def _result(centroids: Float32, labels: Int64, distances: Float64, passes: int) -> KMeansResult:
    k = len(centroids)
    per_cluster: Float64 = np.bincount(labels, weights=distances, minlength=k)
    order = np.lexsort((distances, labels))  # stable: equals stay in index order
    sizes = np.bincount(labels, minlength=k)
    return KMeansResult(
        centroids=centroids,
        labels=labels,
        sizes=sizes,
        inertia=float(per_cluster.sum()),
        inertia_per_cluster=per_cluster,
        medoids=order[np.cumsum(sizes) - sizes],
        iterations=passes,
    )


def _warn_of_duplicates(backend: Backend, task: Task, result: KMeansResult) -> None:
    if result.inertia > 0:  # with fewer distinct points than k it is exactly 0
        return
    distinct = len({row.tobytes() for row in backend.host(task.points)})
    if distinct < task.k:
        log.warning("class %d: only %d distinct points for k = %d", task.id, distinct, task.k)
