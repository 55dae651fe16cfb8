"""The kernels on the CPU: built with g++ through shim/shim.h, called through ctypes with NumPy's arrays."""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.kernels.backend import THREADS
from d4m_fast.kernels.cuda import source as source

SHIM = Path(__file__).parent / "shim"
POINTS = {"float16": "__half", "float32": "float"}
FLAGS = ("-std=c++17", "-O1", "-march=native", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror")
GUARD = 256  # bytes round every array


def kernels(text: str) -> list[str]:
    return re.findall(r"^KERNEL (\w+)\(", text, flags=re.MULTILINE)


def has_compiler() -> bool:
    return shutil.which("g++") is not None


def build(text: str, folder: Path, points: str, *more: str) -> ctypes.CDLL:
    """A library of the kernels in a source."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kmeans.cu").write_text(text, encoding="utf-8")
    launchers = "\n".join(f"LAUNCHER({name})" for name in kernels(text))
    (folder / "host.cpp").write_text(f'#include "shim.h"\n#include "kmeans.cu"\n{launchers}\n', encoding="utf-8")
    out = folder / f"{points}.so"
    flags = (*FLAGS, "-Wno-unknown-pragmas", f"-DPOINT={POINTS[points]}", "-I", str(SHIM), "-I", str(folder), *more)
    subprocess.run(["g++", *flags, "-shared", "-fPIC", str(folder / "host.cpp"), "-o", str(out)], check=True)
    library = ctypes.CDLL(str(out))
    for name in kernels(text):
        getattr(library, f"launch_{name}").restype = ctypes.c_char_p
        getattr(library, f"signature_{name}").restype = ctypes.c_char_p
    return library


class LaunchError(AssertionError):
    """A launch that a GPU would not take, or that has no defined result there."""


class HostCuda:
    """A `Backend` on the CPU.

    Arrays are filled with NaN (integers with -1) and lie between guard bytes that every launch checks. `order` shuffles
    blocks and threads. `noise` adds errors of that share of |a||b| to products, as a GPU's may have.
    """

    xp: Any

    def __init__(
        self, libraries: dict[str, ctypes.CDLL], order: int = 0, noise: float = 0.0, workspace: int = 1 << 20
    ) -> None:
        self.workspace = workspace
        self._libraries = libraries
        self._random = np.random.default_rng(order)
        self._noise = noise
        self._guarded: list[np.ndarray] = []
        self.xp = _Guarded(self._guarded)
        self.launched: list[str] = []

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._guarded.clear()

    def scope(self) -> AbstractContextManager[None]:
        return self._scope()

    def array(self, values: Any) -> Any:
        return np.asarray(values)

    def host(self, values: Any) -> np.ndarray:
        return np.array(values)

    def launch(self, kernel: str, points: str, grid: tuple[int, int, int], args: Sequence[Any]) -> None:
        library = self._libraries[points]
        expected = getattr(library, f"signature_{kernel}")().decode().split()
        given = [_code(arg) for arg in args]
        if given != expected:
            raise LaunchError(f"{kernel} takes {expected}, not {given}")
        held = [arg.ctypes.data_as(ctypes.c_void_p) if _is_array(arg) else ctypes.c_longlong(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
        order = int(self._random.integers(1 << 31))
        error = getattr(library, f"launch_{kernel}")(pointers, (ctypes.c_uint * 3)(*grid), THREADS, order)
        if error:
            raise LaunchError(f"{kernel}: {error.decode()}")
        self.launched.append(kernel)
        for block in self._guarded:
            if (block[:GUARD] != 0xFF).any() or (block[-GUARD:] != 0xFF).any():
                raise LaunchError(f"{kernel} writes beside an array")

    def product(self, a: Any, b: Any, out: Any) -> None:
        for left, right, result in zip(a, b, out, strict=True):
            left, right = left.astype(np.float32), right.astype(np.float32)
            with np.errstate(invalid="ignore"):
                np.matmul(left, right.T, out=result)
            if self._noise:
                lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
                result += self._noise * self._random.uniform(-1, 1, result.shape) * lengths


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise LaunchError("an array that is not contiguous")
        return True
    return False


def _code(value: Any) -> str:
    """As shim.h names types."""
    if not _is_array(value):
        assert isinstance(value, int)
        return "i8"
    return f"*{'i' if value.dtype.kind == 'i' else value.dtype.kind}{value.dtype.itemsize}"


class _Guarded:
    """NumPy, but arrays are made between guards."""

    def __init__(self, blocks: list[np.ndarray]) -> None:
        self._blocks = blocks

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block = np.full(size + 2 * GUARD, 0xFF, np.uint8)
        self._blocks.append(block)
        made: np.ndarray = block[GUARD:-GUARD].view(dtype).reshape(shape)
        return made

    def zeros(self, shape: Any, dtype: Any) -> np.ndarray:
        made = self.empty(shape, dtype)
        made[...] = 0
        return made

    def ones(self, shape: Any, dtype: Any) -> np.ndarray:
        made = self.empty(shape, dtype)
        made[...] = 1
        return made

    def zeros_like(self, other: np.ndarray) -> np.ndarray:
        return self.zeros(other.shape, other.dtype)

    def ones_like(self, other: np.ndarray) -> np.ndarray:
        return self.ones(other.shape, other.dtype)
