"""k-means of many problems on a GPU: the same as kernels/kmeans.py, in batches of problems of one padded shape.

Numerics. float16 products are summed in float32 and leave the order of two centroids open where their error bound does;
what is open is decided by float64 distances, and of equals the lowest index is taken. Sums, norms and inertia are
float64, and sums of up to 8,192 float16 points are exact. So labels do not depend on how a product is rounded, nor on
the batch; where seeding and Gram space read the products themselves, these have a shape of their own.

Memory. Points are copied into a batch of at most 2 GiB (or one problem); besides them a problem has float64 centroids,
their float16 halves, two float32 scores per point and cluster, and in Gram space the (n, n) float32 products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from d4m_fast.errors import DataError, UsageError
from d4m_fast.kernels.backend import Backend, DeviceArray, DeviceMethod, Shape, padded
from d4m_fast.kernels.batch import Batch
from d4m_fast.kernels.cuda import CupyBackend, device_of
from d4m_fast.kernels.device_seeding import choose_seeds
from d4m_fast.kernels.problem import LARGEST_SQUARE, Float64, check_shape, generator
from d4m_fast.kernels.request import Options, Request
from d4m_fast.kernels.result import DUPLICATES, KMeansResult, Outcome, effective_k, summarize
from d4m_fast.kernels.roofline import gram_pays

LARGEST_K = 65_535  # blocks along an axis of a grid


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A problem whose points are on the device.

    Attributes:
        points: (n, D) float16 or float32.
        start: (k, D) initial centres, or None.
    """

    points: DeviceArray
    k: int
    id: int
    start: DeviceArray | None


def solve_on_gpu(problem_requests: Sequence[Request], options: Options) -> list[Outcome]:
    """Solve problems on the GPU that holds them.

    Raises:
        UsageError: they are not all on one, or what `solve` refuses.
        PreflightError: no CuPy.
    """
    places = {device_of(request.points) for request in problem_requests}
    (device,) = places if len(places) == 1 else (None,)
    if device is None:
        raise UsageError("k-means got problems on several devices, or some in memory: move them to one")
    return solve(CupyBackend(device), problem_requests, options)


def solve(backend: Backend, problem_requests: Sequence[Request], options: Options) -> list[Outcome]:
    """Cluster each problem; return its result, in NumPy, or what is wrong with it.

    Raises:
        UsageError: method "minibatch", which runs on the CPU.
    """
    if options.method == "minibatch":
        raise UsageError("k-means method 'minibatch' runs on the CPU: move the points there")
    with backend.scope():
        outcomes: list[Outcome | Task] = []
        for request in problem_requests:
            try:
                outcomes.append(_task(backend, request))
            except DataError as error:
                outcomes.append(error)
        sound = {place: task for place, task in enumerate(outcomes) if isinstance(task, Task)}
        for shape, lot in _lots(backend, sound, options):
            solved = _solve_lot(backend, shape, list(lot.values()), options)
            for place, outcome in zip(lot, solved, strict=True):
                outcomes[place] = outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, Task)]


def _task(backend: Backend, request: Request) -> Task:
    """Put a problem on the device. Its values are checked later, by the norms that the batch computes.

    Raises:
        DataError: names the class and what is wrong with its shape, its k or its initial centres.
    """
    points, k, problem_id = backend.array(request.points), request.k, request.id
    check_shape(points, k, problem_id)
    if k > LARGEST_K:
        raise DataError(f"class {problem_id}: k = {k} is more than {LARGEST_K}, the most on a GPU")
    if request.start is None:
        return Task(points, k, problem_id, None)
    start, expected = backend.array(request.start).astype("float64"), (k, points.shape[1])
    if start.shape != expected:
        raise DataError(f"class {problem_id}: initial centres of shape {start.shape}, not {expected}")
    if not (np.square(backend.host(start)).sum(axis=1) <= LARGEST_SQUARE).all():
        raise DataError(f"class {problem_id}: NaN, infinite or too large values in its initial centres")
    return Task(points, k, problem_id, start)


def _lots(backend: Backend, tasks: Mapping[int, Task], options: Options) -> Iterator[tuple[Shape, dict[int, Task]]]:
    """Yield tasks of one shape by place, at most as many as there are slots."""
    groups: dict[Shape, list[int]] = {}
    for place, task in tasks.items():
        groups.setdefault(shape_of(task, options), []).append(place)
    for shape, places in groups.items():
        slots = shape.slots(backend.workspace)
        for start in range(0, len(places), slots):
            yield shape, {place: tasks[place] for place in places[start : start + slots]}


def shape_of(task: Task, options: Options) -> Shape:
    n, d = task.points.shape
    gram = options.method == "gram"
    if options.method == "auto":
        gram = gram_pays(n, d, task.k, task.points.dtype.itemsize, refine=options.refine)
    method: DeviceMethod = "gram" if gram else "direct"
    if task.start is None and task.k in (1, n):
        method = "closed"
    return Shape(str(task.points.dtype), method, padded(n, 64), padded(d, 8), padded(task.k, 8))


def _solve_lot(backend: Backend, shape: Shape, lot: Sequence[Task], options: Options) -> list[Outcome]:
    batch = Batch(backend, shape, [task.points for task in lot], [task.k for task in lot])
    batch.centre()
    errors = list(map(_value_error, lot, batch.measure()))  # unused slots come last
    if any(errors):
        if all(errors):
            return [error for error in errors if error is not None]
        sound = [task for task, error in zip(lot, errors, strict=True) if error is None]
        # In a batch of their own: NaN in one slot must not reach the products of another.
        outcomes = iter(_solve_lot(backend, shape, sound, options))
        return [next(outcomes) if error is None else error for error in errors]
    if shape.method == "gram":
        batch.multiply()
    _run(batch, lot, options)
    return [*_results(backend, batch, lot)]


def _value_error(task: Task, squares: Float64) -> DataError | None:
    if not np.isfinite(squares).all():
        return DataError(f"class {task.id}: NaN or infinite values in its points")
    if squares.max() > LARGEST_SQUARE:
        return DataError(f"class {task.id}: values too large for float32 distances")
    return None


def _run(batch: Batch, lot: Sequence[Task], options: Options) -> None:
    batch.reset(options.max_iter)
    if batch.shape.method == "closed":
        # The optimal labels for k of 1 and of n.
        ks = np.ones((batch.slots, 1), np.int64)
        ks[: len(lot), 0] = [task.k for task in lot]
        batch.set_labels(np.arange(batch.shape.n) % ks)
        batch.set_all_means()
    else:
        # `init` is for all problems of a call or for none, so that one task tells.
        has_centres = lot[0].start is not None
        if has_centres:
            for slot, task in enumerate(lot):
                batch.set_centroids(slot, task.start)
        else:
            generators = [generator(options.seed, task.id) for task in lot]
            choose_seeds(batch, [task.points.shape for task in lot], [task.k for task in lot], generators)
            batch.set_all_means()
        if batch.shape.method == "gram":
            _run_in_gram_space(batch, has_centres=has_centres, refine=options.refine)
        batch.resume()
        while not batch.finished():
            batch.pass_on_points()
            batch.set_means()
    batch.measure_distances()


def _run_in_gram_space(batch: Batch, *, has_centres: bool, refine: bool) -> None:
    """Run Lloyd and Hartigan in Gram space; Lloyd on the points, which comes after, settles what products cannot."""
    batch.resume()
    if has_centres:  # they are no means of points, so Gram space knows no products of theirs
        batch.pass_on_points()
    while not batch.finished():
        batch.pass_on_products()
    if refine:
        batch.refine()
    batch.set_all_means()


def _results(backend: Backend, batch: Batch, lot: Sequence[Task]) -> list[KMeansResult]:
    names = ("labels", "distances", "squares", "passes")
    state = [backend.host(getattr(batch, name)) for name in names]
    results = []
    for slot, (task, labels, distances, squares, passes) in enumerate(zip(lot, *state, strict=False)):
        n, d = task.points.shape
        centroids = backend.host(batch.centroids(slot)[: task.k, :d])
        result = summarize(centroids, labels[:n].astype(np.int64), distances[:n], int(passes))
        if result.inertia <= DUPLICATES * squares[:n].sum():
            result = replace(result, effective_k=effective_k(backend.host(task.points), task.k, task.id))
        results.append(result)
    return results
