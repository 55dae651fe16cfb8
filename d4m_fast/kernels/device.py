"""k-means of many problems on a GPU: the same as kernels/kmeans.py, in batches of problems of one padded shape.

Numerics. float16 products are summed in float32 and leave the order of two centroids open where their error bound does;
what is open is decided by float64 distances, and of equals the lowest index is taken. Sums, norms, weights and inertia
are float64, and sums of up to 8,192 unweighted float16 points are exact. So labels do not depend on how a product is
rounded, nor on the batch; where seeding and Gram space read the products themselves, these have a shape of their own.

Memory. Points are copied into a batch of at most 2 GiB (or one problem); besides them a problem has float64 centroids,
their float16 halves, two float32 scores per point and cluster, and in Gram space the (n, n) float32 products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from d4m_fast.errors import DataError, UsageError
from d4m_fast.kernels.backend import Backend, DeviceArray, DeviceMethod, Shape, padded
from d4m_fast.kernels.batch import Batch
from d4m_fast.kernels.cuda import CupyBackend, device_of
from d4m_fast.kernels.device_seeding import choose_seeds
from d4m_fast.kernels.problem import LARGEST_SQUARE, Float64, Int64, check_shape, generator
from d4m_fast.kernels.request import Options, Request
from d4m_fast.kernels.result import DUPLICATES, KMeansResult, Outcome, effective_k, summarize
from d4m_fast.kernels.roofline import gram_pays

LARGEST_K = 65_535  # blocks along an axis of a grid


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One problem on the device.

    Attributes:
        points: (n, D) float16 or float32.
        start: (k, D) initial centres, or None.
        weights: (n,) float64, or None where all weigh 1.
    """

    points: DeviceArray
    k: int
    id: int
    start: DeviceArray | None
    weights: DeviceArray | None


def solve_on_gpu(asked: Sequence[Request], options: Options) -> list[Outcome]:
    """`solve` on the GPU that holds the problems.

    Raises:
        UsageError: they are not all on one, or what `solve` refuses.
        PreflightError: no CuPy.
    """
    places = {device_of(request.points) for request in asked}
    (device,) = places if len(places) == 1 else (None,)
    if device is None:
        raise UsageError("k-means got problems on several devices, or some in memory: move them to one")
    return solve(CupyBackend(device), asked, options)


def solve(backend: Backend, asked: Sequence[Request], options: Options) -> list[Outcome]:
    """Cluster each problem. The result of each, in NumPy, or what is wrong with it.

    Raises:
        UsageError: method "minibatch", which runs on the CPU.
    """
    if options.method == "minibatch":
        raise UsageError("k-means method 'minibatch' runs on the CPU: move the points there")
    with backend.scope():
        outcomes: list[Outcome | Task] = [_task(backend, request) for request in asked]
        sound = {place: task for place, task in enumerate(outcomes) if isinstance(task, Task)}
        for shape, lot in _lots(backend, sound, options):
            for place, outcome in zip(lot, _solve_lot(backend, shape, list(lot.values()), options), strict=True):
                outcomes[place] = outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, Task)]


def _task(backend: Backend, request: Request) -> Task | DataError:
    start, weights = _array(backend, request.start), _array(backend, request.weights)
    task = Task(backend.array(request.points), request.k, request.id, start, weights)
    try:
        check_shape(task.points, task.k, task.id)
    except DataError as error:
        return error
    problem = _wrong_extent(task) or _wrong_extras(backend, task)
    return DataError(f"class {task.id}: {problem}") if problem else task


def _array(backend: Backend, values: Any) -> DeviceArray | None:
    return None if values is None else backend.array(values).astype("float64")


def _wrong_extent(task: Task) -> str:
    n, d = task.points.shape
    if task.k > LARGEST_K:
        return f"k = {task.k} is more than {LARGEST_K}, the most on a GPU"
    if task.start is not None and task.start.shape != (task.k, d):
        return f"initial centres of shape {task.start.shape}, not {(task.k, d)}"
    if task.weights is not None and task.weights.shape != (n,):
        return f"weights of shape {task.weights.shape}, not ({n},)"
    return ""


def _wrong_extras(backend: Backend, task: Task) -> str:
    if task.start is not None:
        squares = np.square(backend.host(task.start)).sum(axis=1)
        if not (squares <= LARGEST_SQUARE).all():
            return "NaN, infinite or too large values in its initial centres"
    if task.weights is not None:
        weights = backend.host(task.weights)
        if not (np.isfinite(weights) & (weights > 0)).all():
            return "weights must be positive and finite; leave out points that should not count"
    return ""


def _lots(backend: Backend, tasks: Mapping[int, Task], options: Options) -> Iterator[tuple[Shape, dict[int, Task]]]:
    """Tasks of one shape by place, at most as many as there are slots."""
    groups: dict[Shape, list[int]] = {}
    for place, task in tasks.items():
        groups.setdefault(shape_of(task, options), []).append(place)
    for shape, places in groups.items():
        slots = shape.slots(backend.workspace)
        for start in range(0, len(places), slots):
            yield shape, {place: tasks[place] for place in places[start : start + slots]}


def shape_of(task: Task, options: Options) -> Shape:
    n, d = task.points.shape
    return Shape(str(task.points.dtype), _method(task, options), padded(n, 64), padded(d, 8), padded(task.k, 8))


def _method(task: Task, options: Options) -> DeviceMethod:
    n, d = task.points.shape
    if task.start is None and task.k in (1, n):
        return "closed"
    gram = options.method == "gram"
    if options.method == "auto":
        gram = gram_pays(n, d, task.k, task.points.dtype.itemsize, refine=options.refine)
    return "gram" if gram else "direct"


def _solve_lot(backend: Backend, shape: Shape, lot: Sequence[Task], options: Options) -> list[Outcome]:
    batch = _loaded(backend, shape, lot)
    errors = [_wrong_values(task, row) for task, row in zip(lot, batch.measure(), strict=False)]
    if any(errors):
        if all(errors):
            return [error for error in errors if error is not None]
        sound = [task for task, error in zip(lot, errors, strict=True) if error is None]
        others = iter(_solve_lot(backend, shape, sound, options))
        return [next(others) if error is None else error for error in errors]
    if shape.method == "gram":
        batch.multiply()
    return [*_best_of_runs(backend, batch, lot, options)]


def _loaded(backend: Backend, shape: Shape, lot: Sequence[Task]) -> Batch:
    batch = Batch(backend, shape, [task.points for task in lot], [task.k for task in lot])
    batch.centre()
    for slot, task in enumerate(lot):
        if task.weights is not None:
            batch.set_weights(slot, task.weights)
    return batch


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
    return best


def _run(batch: Batch, lot: Sequence[Task], generators: Sequence[np.random.Generator], options: Options) -> None:
    """One seeding and what follows."""
    batch.reset(options.max_iter)
    if batch.shape.method == "closed":
        batch.set_labels(_closed_form(batch, lot))
        batch.set_all_means()
    else:
        _start(batch, lot, generators)
        if batch.shape.method == "gram":
            _run_in_gram_space(batch, given=lot[0].start is not None, refine=options.refine)
        batch.resume()
        while not batch.finished():
            batch.pass_on_points()
            batch.set_means()
    batch.measure_distances()


def _closed_form(batch: Batch, lot: Sequence[Task]) -> Int64:
    """The optimum for k of 1 and of n."""
    ks = np.ones((batch.slots, 1), np.int64)
    ks[: len(lot), 0] = [task.k for task in lot]
    return np.arange(batch.shape.n) % ks


def _start(batch: Batch, lot: Sequence[Task], generators: Sequence[np.random.Generator]) -> None:
    """Initial labels with their means, or initial centres."""
    if lot[0].start is None:
        choose_seeds(batch, [task.points.shape for task in lot], [task.k for task in lot], generators)
        batch.set_all_means()
    for slot, task in enumerate(lot):
        if task.start is not None:
            batch.set_centroids(slot, task.start)


def _run_in_gram_space(batch: Batch, *, given: bool, refine: bool) -> None:
    """Lloyd and Hartigan in Gram space; Lloyd on the points after it settles what products cannot."""
    batch.resume()
    if given:
        batch.pass_on_points()
    while not batch.finished():
        batch.pass_on_products()
    if refine:
        batch.refine()
    batch.set_all_means()


def _results(backend: Backend, batch: Batch, lot: Sequence[Task]) -> list[KMeansResult]:
    names = ("labels", "distances", "weights", "squares", "passes")
    state = [backend.host(getattr(batch, name)) for name in names]
    found = []
    for slot, (task, labels, distances, weights, squares, passes) in enumerate(zip(lot, *state, strict=False)):
        n, d = task.points.shape
        centroids = backend.host(batch.centroids(slot)[: task.k, :d])
        result = summarize(centroids, labels[:n].astype(np.int64), distances[:n], weights[:n], int(passes))
        if result.inertia <= DUPLICATES * squares[:n].sum():
            result = replace(result, effective_k=effective_k(backend.host(task.points), task.k, task.id))
        found.append(result)
    return found
