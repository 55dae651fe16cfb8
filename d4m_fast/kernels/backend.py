"""The backend that a batch of k-means problems runs on, and the padded shape that its problems share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from d4m_fast.kernels import direct
from d4m_fast.kernels.problem import Array
from d4m_fast.kernels.seeding import candidate_count, greedy_trials

THREADS = 256  # per block, as BLOCK in points.cu
POINTS_PER_BLOCK = THREADS // 32  # in kernels with a warp per point
COLUMNS_PER_BLOCK = 2 * THREADS
MAX_SLOTS = 64

DeviceMethod = Literal["direct", "gram", "closed"]  # closed: k is 1 or n, and nothing is left to find
DeviceArray = Any  # a cupy.ndarray; in the tests a NumPy one


class Backend(Protocol):
    """A library that runs the kernels: CuPy, or in the tests a host compiler."""

    @property
    def xp(self) -> Any:
        """Return the array module."""
        ...

    @property
    def workspace(self) -> int:
        """Return the bytes that a batch may take."""
        # Fixed, not what is free: results in Gram space have the bits of their batch's shape.
        ...

    def scope(self) -> AbstractContextManager[None]:
        """Return a context in which device, stream and allocator are set."""
        ...

    def array(self, values: Any) -> DeviceArray:
        """Return values on the device, without a copy where they are there."""
        ...

    def host(self, values: DeviceArray) -> Array:
        """Copy values to NumPy."""
        ...

    def launch(self, kernel: str, points: str, grid: tuple[int, int, int], args: Sequence[Any]) -> None:
        """Start a kernel compiled for `points` ("float16" or "float32"): integers become int64, arrays pointers."""
        ...

    def product(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
        """out[s] = a[s] b[s]^T of (B, M, D), (B, N, D) and float32 (B, M, N), summed in float32, without TF32."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape that the problems of a batch share: the type of their points, their method and their sizes, padded."""

    points: str
    method: DeviceMethod
    n: int
    d: int
    k: int

    def slots(self, workspace: int) -> int:
        """Return how many problems go into so many bytes."""
        item = np.dtype(self.points).itemsize
        # Points; centroids in float64 and as two halves; two float32 scores per point and cluster.
        size = self.n * self.d * item + self.k * self.d * (8 + 2 * item) + 8 * self.k * self.n
        if self.method == "gram":
            # Inner products, and their sums over clusters.
            size += 4 * self.n * self.n + 8 * self.k * self.n
        else:
            # Candidates, gathered, and their products with all points.
            size += self.most_candidates * (4 * self.n + self.d * item)
        return max(1, min(MAX_SLOTS, workspace // size))

    @property
    def trials(self) -> int:
        """Return the most candidates per seed of any problem of this shape."""
        # D is padded to a multiple of 8: the narrowest of these problems is 7 less, and narrow ones have more trials.
        return trials_for(self.k, self.d - 7, self.method)

    @property
    def most_candidates(self) -> int:
        """Return the most candidates drawn at once for any problem of this shape."""
        smallest = max(1, self.n - 63)  # N is padded to a multiple of 64, and small problems draw more
        largest = max(candidate_count(self.k, smallest, seeds, self.trials) for seeds in range(1, self.k))
        return padded(largest, 8)


def trials_for(k: int, d: int, method: DeviceMethod) -> int:
    """Return the number of candidates per seed, the same as on the CPU."""
    return direct.trials_for(k, d) if method == "direct" else greedy_trials(k)


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
