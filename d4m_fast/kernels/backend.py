"""What a batch of k-means problems runs on, and what its problems share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from d4m_fast.kernels import direct
from d4m_fast.kernels.problem import Array
from d4m_fast.kernels.seeding import greedy_trials, wanted

THREADS = 256
POINTS_PER_BLOCK = THREADS // 32  # in kernels with a warp per point
COLUMNS_PER_BLOCK = 2 * THREADS
MAX_SLOTS = 64

DeviceMethod = Literal["direct", "gram", "closed"]  # closed: k is 1 or n, and nothing is left to find
DeviceArray = Any  # a cupy.ndarray; in the tests a NumPy one


class Backend(Protocol):
    """What runs the kernels: CuPy, or in the tests a host compiler."""

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
        else:
            size += self.drawn * (4 * self.n + self.d * item)
        return max(1, min(MAX_SLOTS, workspace // size))

    @property
    def trials(self) -> int:
        """The most candidates per seed of any problem of this shape."""
        return trials_for(self.k, self.d - 7, self.method)

    @property
    def drawn(self) -> int:
        """The most candidates drawn at once for any problem of this shape."""
        smallest = max(1, self.n - 63)
        return padded(max(wanted(self.k, smallest, chosen, self.trials) for chosen in range(1, self.k)), 8)


def trials_for(k: int, d: int, method: DeviceMethod) -> int:
    """Candidates per seed, as on the CPU."""
    return direct.trials_for(k, d) if method == "direct" else greedy_trials(k)


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
