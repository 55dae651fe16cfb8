"""A batch of k-means problems on a device: the arrays, and the launches of the kernels that work on them.

B slots of one padded shape, the unused ones empty. The number of slots and the padding follow from one problem's shape
alone, so that matrix products, whose rounding may depend on them, give each problem the same bits in any company.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from d4m_fast.kernels.backend import (
    COLUMNS_PER_BLOCK,
    POINTS_PER_BLOCK,
    THREADS,
    Backend,
    DeviceArray,
    Shape,
    padded,
)
from d4m_fast.kernels.gram import GAIN, MAX_SWEEPS
from d4m_fast.kernels.problem import Float64, Int64


class Batch:
    """Problems being solved side by side, and the state of each.

    Shapes as in the kernels: points (B, N, D), centroids (B, K, D) float64, labels (B, N) int32.
    """

    def __init__(self, backend: Backend, shape: Shape, points: Sequence[DeviceArray], ks: Sequence[int]) -> None:
        self._backend, self.shape, self._xp = backend, shape, backend.xp
        self.slots, self.most_candidates = shape.slots(backend.workspace), shape.most_candidates
        b, n, d, k = self.slots, shape.n, shape.d, shape.k
        zeros = self._xp.zeros
        self.points = zeros((b, n, d), shape.points)
        self.squares, self.distances, self._closest = (zeros((b, n), "float64") for _ in range(3))
        self._n, self._k, self._progress, self._left = (zeros(b, "int32") for _ in range(4))
        self.labels, self._found, self._order, self._nearest = (zeros((b, n), "int32") for _ in range(4))
        self._sizes, self._changed, self._seeds = (zeros((b, k), "int32") for _ in range(3))
        self._offsets, self._mass = zeros((b, k + 1), "int32"), zeros((b, k), "float64")
        self._norms, self._lengths, self._within = (zeros((b, k), "float64") for _ in range(3))
        self._centroids, self._shift = zeros((b, k, d), "float64"), zeros((b, d), "float64")
        self._offset = zeros((b, d), shape.points)
        self._parts = zeros((b, 2, k, d), shape.points)
        self._done, self._empty, self.passes, self._limits = (zeros(b, "int32") for _ in range(4))
        self._scores = self._xp.empty((b, 2 * k, n), "float32")
        if shape.method == "gram":
            self._gram, self._sums = self._xp.empty((b, n, n), "float32"), zeros((b, k, n), "float64")
        for slot, (values, problem_k) in enumerate(zip(points, ks, strict=True)):
            self.points[slot, : values.shape[0], : values.shape[1]] = values
            self._n[slot], self._k[slot] = values.shape[0], problem_k

    def _launch(self, kernel: str, grid: tuple[int, ...], *args: Any) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        self._backend.launch(kernel, self.shape.points, (x, y, z), args)

    def _blocks(self, per_block: int) -> tuple[int, int]:
        return padded(self.shape.n, per_block) // per_block, self.slots

    # Before the first run

    def centre(self) -> None:
        """Take the mean off the points where that is exact; `_offset` is what was taken, `_shift` the mean left."""
        grid = (padded(self.shape.d, THREADS) // THREADS, self.slots)
        outputs = (self.points, self._offset, self._shift)
        self._launch("centre", grid, self._n, self.shape.n, self.shape.d, *outputs)

    def measure(self) -> Float64:
        """Compute the squared norms of the points (B, N), which are NaN or infinite where the points are."""
        origin = self._xp.zeros((self.slots, 1, self.shape.d), "float64")
        self._labels_to(0)
        self._distances(origin, self.labels, self._n, self.squares)
        return np.asarray(self._backend.host(self.squares))

    def multiply(self) -> None:
        """Compute the inner products of all points."""
        self._backend.product(self.points, self.points, self._gram)
        b, n = self.slots, self.shape.n
        # A point is at 0 from itself only if its product is its squared norm to the last bit.
        self._gram.reshape(b, n * n)[:, :: n + 1] = self.squares

    # Seeding

    def begin_seeding(self) -> None:
        """Forget all seeds; every point is as likely to be the first."""
        self._closest[:] = 1
        self._progress[:] = 0
        self._left[:] = 1

    def seeds_chosen(self) -> tuple[Int64, Int64]:
        """Return how many seeds there are, (B,), and whether a point is off its seed, (B,)."""
        return self._host_ints(self._progress), self._host_ints(self._left)

    def extend_seeds(self, trials: Int64, counts: Int64, uniforms: Float64) -> None:
        """Draw (B,) candidates, with numbers in [0, 1), (B, 2, T), and choose seeds, each from (B,) trials of them.

        Without seeds so far, the one candidate is taken.
        """
        shape, xp = self.shape, self._xp
        candidates = xp.zeros((self.slots, self.most_candidates), "int32")
        limits = xp.zeros((self.slots, self.most_candidates), "float64")
        trials, counts = self._ints(trials), self._ints(counts)
        sizes = (shape.n, self.most_candidates)
        masses = (self._closest, self._n, counts, self._backend.array(uniforms))
        self._launch("draw", (self.slots,), *masses, *sizes, candidates, limits)
        # The first seed is drawn uniformly, by distances of 1. After that they are infinite: no seed is near.
        if not self._progress.any():
            self._closest[:] = np.finfo(np.float64).max
            limits[:] = -1
        rows, by_index = self._products_of(candidates)
        inputs = (rows, self.points, self.squares, self._n, self._k, trials, counts, candidates, limits)
        lengths = (int(by_index), rows.shape[1], shape.n, shape.d, shape.k, self.most_candidates)
        state = (self._closest, self._nearest, self._seeds, self._progress, self._left)
        self._launch("extend", (self.slots,), *inputs, *lengths, *state)

    def _products_of(self, candidates: DeviceArray) -> tuple[DeviceArray, bool]:
        """Return inner products of some points with all, and whether a row has its point's index."""
        if self.shape.method == "gram":
            return self._gram, True
        rows = self._xp.empty((self.slots, self.most_candidates, self.shape.n), "float32")
        points = self.points[self._xp.arange(self.slots)[:, None], candidates]
        self._backend.product(points, self.points, rows)
        return rows, False

    def label_by_seeds(self) -> None:
        """Label points by their nearest seeds. With only duplicates left, any points do for the seeds missing."""
        seeds, counts, sizes, ks = map(self._host_ints, (self._seeds, self._progress, self._n, self._k))
        for slot in np.flatnonzero(counts < ks):
            unused = np.setdiff1d(np.arange(sizes[slot]), seeds[slot, : counts[slot]])
            seeds[slot, counts[slot] : ks[slot]] = unused[: ks[slot] - counts[slot]]
        self._seeds[:] = self._ints(seeds)
        self._found[:] = self._nearest
        self._take_labels(plant=True)

    def _ints(self, values: Int64) -> DeviceArray:
        return self._backend.array(values.astype(np.int32))

    def _host_ints(self, values: DeviceArray) -> Int64:
        return np.asarray(self._backend.host(values)).astype(np.int64)

    # Initial centres and labels

    def set_centroids(self, slot: int, centres: DeviceArray) -> None:
        k, d = centres.shape
        self._centroids[slot, :k, :d] = centres - self._offset[slot, :d]
        self._changed[slot] = 1

    def set_labels(self, labels: Int64) -> None:
        """Take labels (B, N), and make the clusters of them."""
        self._found[:] = self._backend.array(labels.astype(np.int32))
        self._take_labels()

    # Passes

    def reset(self, max_iter: int) -> None:
        """Forget all labels and passes, and allow at most `max_iter` passes from here."""
        self.passes[:] = 0
        self._limits[:] = max_iter
        self._labels_to(-1)

    def resume(self) -> None:
        """Let the problems go on that have passes left."""
        self._done[:] = (self._n == 0) | (self.passes >= self._limits)

    def finished(self) -> bool:
        return bool(self._done.all())

    def pass_on_points(self) -> None:
        """Label points by their nearest centroids, fill empty clusters, and list the points of each."""
        k, d = self.shape.k, self.shape.d
        centroids = (self._centroids, self._shift, self._changed, self._k)  # those that did not change are not split
        self._launch("split", (k, self.slots), *centroids, k, d, self._parts, self._norms, self._lengths)
        self._backend.product(self._parts.reshape(self.slots, 2 * k, d), self.points, self._scores)
        scores, mask = (self._scores, self._norms, self._lengths), (self._done, self._n, self._k)
        sizes = (self.shape.n, self.shape.d, self.shape.k, self._found)
        self._launch("assign", self._blocks(THREADS), *scores, self.squares, *mask, *sizes)
        exact = (self.points, self.squares, self._centroids)
        self._launch("decide", self._blocks(POINTS_PER_BLOCK), *scores, *exact, *mask, *sizes)
        self._histogram()
        self._distances(self._centroids, self._found, self._empty, self.distances)
        self._regroup()

    def set_means(self) -> None:
        """Compute the means of the clusters that changed."""
        shape = self.shape
        grid = (padded(shape.d, COLUMNS_PER_BLOCK) // COLUMNS_PER_BLOCK, shape.k, self.slots)
        inputs = (self.points, self._order, self._offsets, self._changed, self._mass, self._k)
        self._launch("mean_points", grid, *inputs, shape.n, shape.k, shape.d, self._centroids)

    def pass_on_products(self) -> None:
        """Make a pass in Gram space, where a problem is done before a cluster would be left empty."""
        self._sum_products()
        self._sum_within()
        arrays = (self._sums, self._within, self._mass, self._done, self._n, self._k)
        self._launch("assign_gram", self._blocks(THREADS), *arrays, self.shape.n, self.shape.k, self._found)
        self._histogram()
        self._regroup(stop=True)

    def refine(self) -> None:
        """Make Hartigan's moves; their sweeps count as passes."""
        shape, sweeps = self.shape, self._xp.zeros_like(self._n)
        self._sum_products()
        self._done[:] = self._n == 0
        self._sum_within()
        self._sizes[:] = self._offsets[:, 1:] - self._offsets[:, :-1]
        least = GAIN * self.squares.sum(axis=1) / self._xp.maximum(self._n, 1)
        state = (self._sums, self._within, self._mass, self._sizes, self._found, self.labels, sweeps)
        inputs = (self._gram, self.squares, least, self._n * (self.passes < self._limits), self._k)
        self._launch("hartigan", (self.slots,), *inputs, MAX_SWEEPS, shape.n, shape.k, *state)
        self.passes += sweeps
        self._found[:] = self.labels
        self._take_labels()

    def set_all_means(self) -> None:
        self._changed[:] = 1
        self.set_means()

    def centroids(self, slot: int) -> DeviceArray:
        """Return the centroids of the original points, (K, D) float32."""
        return (self._centroids[slot] + self._offset[slot]).astype("float32")

    def measure_distances(self) -> None:
        """Compute the distances of all points from the centroids of their labels."""
        self._distances(self._centroids, self.labels, self._n, self.distances)

    # Launches shared by these

    def _labels_to(self, value: int) -> None:
        self.labels[:] = value

    def _take_labels(self, *, plant: bool = False) -> None:
        """Make clusters of the labels found. This is not a pass, so the number of passes stays."""
        # `regroup` counts itself as a pass.
        passes = self.passes.copy()
        self._done[:] = self._n == 0
        self._labels_to(-1)
        self._histogram(plant=plant)
        self._regroup()
        self.passes[:] = passes

    def _histogram(self, *, plant: bool = False) -> None:
        sizes = (int(plant), self.shape.n, self.shape.k)
        arrays = (self._seeds, self._done, self._n, self._k)
        self._launch("histogram", (self.slots,), *arrays, *sizes, self._found, self._sizes, self._empty)

    def _regroup(self, *, stop: bool = False) -> None:
        inputs = (self.distances, self._empty, self._n, self._k, self._limits)
        clusters = (self.labels, self._order, self._offsets, self._mass, self._changed, self.passes, self._done)
        sizes = (int(stop), self.shape.n, self.shape.k)
        self._launch("regroup", (self.slots,), *inputs, *sizes, self._found, self._sizes, *clusters)

    def _sum_products(self) -> None:
        shape = self.shape
        grid = (padded(shape.n, COLUMNS_PER_BLOCK) // COLUMNS_PER_BLOCK, shape.k, self.slots)
        clusters = (self._order, self._offsets, self._changed, self._k)
        self._launch("sum_products", grid, self._gram, *clusters, shape.n, shape.k, self._sums)

    def _sum_within(self) -> None:
        grid = (padded(self.shape.k, POINTS_PER_BLOCK) // POINTS_PER_BLOCK, self.slots)
        arrays = (self._sums, self._order, self._offsets, self._done, self._k)
        self._launch("within", grid, *arrays, self.shape.n, self.shape.k, self._within)

    def _distances(self, centroids: DeviceArray, labels: DeviceArray, mask: DeviceArray, out: DeviceArray) -> None:
        inputs = (self.points, centroids, labels, mask, self._n)
        sizes = (self.shape.n, self.shape.d, centroids.shape[1])
        self._launch("distances", self._blocks(POINTS_PER_BLOCK), *inputs, *sizes, out)
