"""A batch of k-means problems on a device: the arrays, and the launches of kmeans.cu that work on them.

B slots of one padded shape, the unused ones empty. The number of slots and the padding follow from one problem's shape
alone, so that matrix products, whose rounding may depend on them, give each problem the same bits in any company.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from d4m_fast.kernels.gram import GAIN, MAX_SWEEPS
from d4m_fast.kernels.problem import Array, Float64, Int64

THREADS = 256
POINTS_PER_BLOCK = THREADS // 32  # in kernels with a warp per point
COLUMNS_PER_BLOCK = 2 * THREADS
MAX_SLOTS = 64

DeviceMethod = Literal["direct", "gram", "closed"]  # closed: k is 1 or n, and nothing is left to find
DeviceArray = Any  # a cupy.ndarray; in the tests a NumPy one


class Backend(Protocol):
    """What runs kmeans.cu: CuPy, or in the tests a host compiler."""

    @property
    def xp(self) -> Any:
        """The array module."""
        ...

    @property
    def workspace(self) -> int:
        """Bytes that a batch may take: fixed, for results in Gram space have the bits of their batch's shape."""
        ...

    def scope(self) -> AbstractContextManager[None]:
        """In which device, stream and allocator are set."""
        ...

    def array(self, values: Any) -> DeviceArray:
        """On the device, without a copy where it is there."""
        ...

    def host(self, values: DeviceArray) -> Array: ...

    def launch(self, kernel: str, points: str, grid: tuple[int, int, int], args: Sequence[Any]) -> None:
        """Start a kernel compiled for `points` ("float16" or "float32"): integers become int64, arrays pointers."""
        ...

    def product(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
        """out[s] = a[s] b[s]^T of (B, M, D), (B, N, D) and float32 (B, M, N), summed in float32, without TF32."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What the problems of a batch share: the type of their points, their method and their sizes, padded."""

    points: str
    method: DeviceMethod
    n: int
    d: int
    k: int

    def slots(self, workspace: int) -> int:
        """Problems that go into so many bytes."""
        item = np.dtype(self.points).itemsize
        size = self.n * self.d * item + self.k * self.d * (8 + 2 * item) + 8 * self.k * self.n
        if self.method == "gram":
            size += 4 * self.n * self.n + 8 * self.k * self.n
        return max(1, min(MAX_SLOTS, workspace // size))

    @property
    def trials(self) -> int:
        """Candidates of a seeding step, padded."""
        return padded(trials_for(self.k), 8)


def trials_for(k: int) -> int:
    """Candidates per seed, scikit-learn's number."""
    return 2 + int(np.log(k))


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


class Batch:
    """Problems being solved side by side, and the state of each.

    Shapes as in kmeans.cu: points (B, N, D), centroids (B, K, D) float64, labels (B, N) int32.
    """

    def __init__(self, backend: Backend, shape: Shape, points: Sequence[DeviceArray], ks: Sequence[int]) -> None:
        self._backend, self.shape, self._xp = backend, shape, backend.xp
        self.slots = shape.slots(backend.workspace)
        self._allocate()
        for slot, (values, k) in enumerate(zip(points, ks, strict=True)):
            self.points[slot, : values.shape[0], : values.shape[1]] = values
            self._n[slot], self._k[slot] = values.shape[0], k
            self._trials[slot] = trials_for(k)

    def _allocate(self) -> None:
        b, n, d, k = self.slots, self.shape.n, self.shape.d, self.shape.k
        zeros = self._xp.zeros
        self.points = zeros((b, n, d), self.shape.points)
        self.weights = self._xp.ones((b, n), "float64")
        self.squares, self.distances = zeros((b, n), "float64"), zeros((b, n), "float64")
        self._n, self._k, self._trials = (zeros(b, "int32") for _ in range(3))
        self.labels, self._found, self._order = (zeros((b, n), "int32") for _ in range(3))
        self._sizes, self._changed, self.chosen = (zeros((b, k), "int32") for _ in range(3))
        self._offsets, self._mass = zeros((b, k + 1), "int32"), zeros((b, k), "float64")
        self._norms, self._lengths, self._within = (zeros((b, k), "float64") for _ in range(3))
        self._centroids, self._shift = zeros((b, k, d), "float64"), zeros((b, d), "float64")
        self._offset = zeros((b, d), self.shape.points)
        self._parts = zeros((b, 2, k, d), self.shape.points)
        self._done, self._empty, self.passes, self._limits = (zeros(b, "int32") for _ in range(4))
        self._scores = self._xp.empty((b, 2 * k, n), "float32")
        if self.shape.method == "gram":
            self._gram, self._sums = self._xp.empty((b, n, n), "float32"), zeros((b, k, n), "float64")

    def _launch(self, kernel: str, grid: tuple[int, ...], *args: Any) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        self._backend.launch(kernel, self.shape.points, (x, y, z), args)

    def _blocks(self, per_block: int) -> tuple[int, int]:
        return padded(self.shape.n, per_block) // per_block, self.slots

    # Before the first run

    def centre(self) -> None:
        """Take the mean off the points where that is exact; `_offset` is what was taken, `_shift` the mean left."""
        grid = (padded(self.shape.d, THREADS) // THREADS, self.slots)
        written = (self.points, self._offset, self._shift)
        self._launch("centre", grid, self._n, self.shape.n, self.shape.d, *written)

    def measure(self) -> Float64:
        """(B, N) squared norms of the points, which are NaN or infinite where the points are."""
        origin = self._xp.zeros((self.slots, 1, self.shape.d), "float64")
        self._labels_to(0)
        self._distances(origin, self.labels, self._n, self.squares)
        return np.asarray(self._backend.host(self.squares))

    def multiply(self) -> None:
        """The inner products of all points; those of a point with itself to the last bit."""
        self._backend.product(self.points, self.points, self._gram)
        b, n = self.slots, self.shape.n
        self._gram.reshape(b, n * n)[:, :: n + 1] = self.squares

    # Seeding

    def seed(self, first: Int64, uniforms: Float64) -> None:
        """Greedy k-means++: `chosen` from the first seeds (B,) and draws in [0, 1), (B, K, T)."""
        shape, candidates = self.shape, self._xp.zeros((self.slots, self.shape.trials), "int32")
        candidates[:, 0] = self._backend.array(first.astype(np.int32))
        draws = self._backend.array(uniforms)
        by_index = shape.method == "gram"
        rows = self._gram if by_index else self._xp.empty((self.slots, shape.trials, shape.n), "float32")
        state = (candidates, self.distances, self.chosen)
        inputs = (self.squares, self.weights, self._n, self._k, self._trials, draws)
        for step in range(int(self._k.max())):
            if not by_index:
                self._backend.product(self._rows(candidates), self.points, rows)
            sizes = (int(by_index), step, rows.shape[1], shape.n, shape.d, shape.k, shape.trials)
            self._launch("seed", (self.slots,), rows, self.points, *inputs, *sizes, *state)

    def _rows(self, indices: DeviceArray) -> DeviceArray:
        """(B, T, D) points."""
        return self.points[self._xp.arange(self.slots)[:, None], indices]

    def _single_out(self) -> None:
        """Make each seed a cluster of its own, of weight one."""
        self._order[:, : self.shape.k] = self.chosen
        self._offsets[:] = self._xp.arange(self.shape.k + 1)
        self._mass[:] = 1
        self._changed[:] = 1

    def set_seeds(self) -> None:
        """Centroids are the seeds."""
        self._single_out()
        self._means(self._xp.ones_like(self.weights))

    def label_by_seeds(self) -> None:
        """In Gram space: labels of the nearest seeds; of equal seeds the second takes a point that can be spared."""
        self._single_out()
        weights = self._xp.ones_like(self.weights)
        self._done[:] = self._n == 0
        self._assign_gram(weights)
        self.distances[:] = 0
        self._take_labels(plant=True)

    def set_weights(self, slot: int, weights: DeviceArray) -> None:
        """Of the points of a problem; 1 where none are set."""
        self.weights[slot, : weights.shape[0]] = weights

    def set_centroids(self, slot: int, centres: DeviceArray) -> None:
        k, d = centres.shape
        self._centroids[slot, :k, :d] = centres - self._offset[slot, :d]
        self._changed[slot] = 1

    def set_labels(self, labels: Int64) -> None:
        """(B, N)."""
        self._found[:] = self._backend.array(labels.astype(np.int32))
        self._take_labels()

    # Passes

    def reset(self, max_iter: int) -> None:
        """No labels, and at most so many passes from here."""
        self.passes[:] = 0
        self._limits[:] = max_iter
        self._labels_to(-1)

    def resume(self) -> None:
        """Who has passes left may make them."""
        self._done[:] = (self._n == 0) | (self.passes >= self._limits)

    def finished(self) -> bool:
        return bool(self._done.all())

    def pass_on_points(self) -> None:
        """Labels of the nearest centroids, of points that moved to empty clusters, and the clusters they make."""
        self._score()
        scores, mask = (self._scores, self._norms, self._lengths), (self._done, self._n, self._k)
        sizes = (self.shape.n, self.shape.d, self.shape.k, self._found)
        self._launch("assign", self._blocks(THREADS), *scores, self.squares, *mask, *sizes)
        exact = (self.points, self.squares, self._centroids)
        self._launch("decide", self._blocks(POINTS_PER_BLOCK), *scores, *exact, *mask, *sizes)
        self._histogram()
        self._distances(self._centroids, self._found, self._empty, self.distances)
        self._regroup()

    def set_means(self) -> None:
        """Centroids of the clusters that changed are the means of their points."""
        self._means(self.weights)

    def pass_on_products(self) -> None:
        """The same in Gram space, where a problem is done before a cluster would be left empty."""
        self._assign_gram(self.weights)
        self._histogram()
        self._regroup(stop=True)

    def refine(self) -> None:
        """Hartigan's moves; their sweeps count as passes."""
        shape, sweeps = self.shape, self._xp.zeros_like(self._n)
        self._sum_products(self.weights)
        self._done[:] = self._n == 0
        self._sum_within(self.weights)
        self._sizes[:] = self._offsets[:, 1:] - self._offsets[:, :-1]
        least = GAIN * self.squares.sum(axis=1) / self._xp.maximum(self._n, 1)
        state = (self._sums, self._within, self._mass, self._sizes, self._found, self.labels, sweeps)
        inputs = (self._gram, self.squares, self.weights, least, self._n, self._k)
        self._launch("hartigan", (self.slots,), *inputs, MAX_SWEEPS, shape.n, shape.k, *state)
        self.passes += sweeps
        self._found[:] = self.labels
        self._take_labels()

    def set_all_means(self) -> None:
        self._changed[:] = 1
        self.set_means()

    def centroids(self, slot: int) -> DeviceArray:
        """(K, D) float32, of the points as they were given."""
        return (self._centroids[slot] + self._offset[slot]).astype("float32")

    def measure_distances(self) -> None:
        """Of all points from the centroids of their labels."""
        self._distances(self._centroids, self.labels, self._n, self.distances)

    # Launches shared by these

    def _score(self) -> None:
        """Products of the centroids that changed, and of the others again."""
        k, d = self.shape.k, self.shape.d
        written = (self._parts, self._norms, self._lengths)
        inputs = (self._centroids, self._shift, self._changed, self._k)
        self._launch("split", (k, self.slots), *inputs, k, d, *written)
        self._backend.product(self._parts.reshape(self.slots, 2 * k, d), self.points, self._scores)

    def _labels_to(self, value: int) -> None:
        self.labels[:] = value

    def _take_labels(self, *, plant: bool = False) -> None:
        """Make clusters of the labels found, which is not a pass."""
        passes = self.passes.copy()
        self._done[:] = self._n == 0
        self._labels_to(-1)
        self._histogram(plant=plant)
        self._regroup()
        self.passes[:] = passes

    def _histogram(self, *, plant: bool = False) -> None:
        sizes = (int(plant), self.shape.n, self.shape.k)
        arrays = (self.chosen, self._done, self._n, self._k)
        self._launch("histogram", (self.slots,), *arrays, *sizes, self._found, self._sizes, self._empty)

    def _regroup(self, *, stop: bool = False) -> None:
        inputs = (self.distances, self.weights, self._empty, self._n, self._k, self._limits)
        clusters = (self.labels, self._order, self._offsets, self._mass, self._changed, self.passes, self._done)
        sizes = (int(stop), self.shape.n, self.shape.k)
        self._launch("regroup", (self.slots,), *inputs, *sizes, self._found, self._sizes, *clusters)

    def _means(self, weights: DeviceArray) -> None:
        shape = self.shape
        grid = (padded(shape.d, COLUMNS_PER_BLOCK) // COLUMNS_PER_BLOCK, shape.k, self.slots)
        clusters = (self._order, self._offsets, self._changed, self._mass, self._k)
        self._launch("mean_points", grid, self.points, weights, *clusters, shape.n, shape.k, shape.d, self._centroids)

    def _sum_products(self, weights: DeviceArray) -> None:
        shape = self.shape
        grid = (padded(shape.n, COLUMNS_PER_BLOCK) // COLUMNS_PER_BLOCK, shape.k, self.slots)
        clusters = (self._order, self._offsets, self._changed, self._k)
        self._launch("sum_products", grid, self._gram, weights, *clusters, shape.n, shape.k, self._sums)

    def _sum_within(self, weights: DeviceArray) -> None:
        grid = (padded(self.shape.k, POINTS_PER_BLOCK) // POINTS_PER_BLOCK, self.slots)
        arrays = (self._sums, weights, self._order, self._offsets, self._done, self._k)
        self._launch("within", grid, *arrays, self.shape.n, self.shape.k, self._within)

    def _assign_gram(self, weights: DeviceArray) -> None:
        self._sum_products(weights)
        self._sum_within(weights)
        arrays = (self._sums, self._within, self._mass, self._done, self._n, self._k)
        self._launch("assign_gram", self._blocks(THREADS), *arrays, self.shape.n, self.shape.k, self._found)

    def _distances(self, centroids: DeviceArray, labels: DeviceArray, wanted: DeviceArray, out: DeviceArray) -> None:
        inputs = (self.points, centroids, labels, wanted, self._n)
        sizes = (self.shape.n, self.shape.d, centroids.shape[1])
        self._launch("distances", self._blocks(POINTS_PER_BLOCK), *inputs, *sizes, out)
