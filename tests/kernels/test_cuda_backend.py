"""What of the CuPy backend can be told without a GPU: arguments, names, and where problems are sent."""

from __future__ import annotations

import ast
import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from host_cuda import HostCuda

from d4m_fast.errors import PreflightError, UsageError
from d4m_fast.kernels import backend, cuda, device
from d4m_fast.kernels.kmeans import BadProblems, kmeans

cupy: Any = pytest.importorskip("cupy", reason="no CuPy: pip install 'd4m-fast[dev]'")
cublas: Any = pytest.importorskip("cupy_backends.cuda.libs.cublas")

POINTS = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float16)


def pointed(array: np.ndarray) -> Any:
    return SimpleNamespace(shape=array.shape, dtype=array.dtype, data=SimpleNamespace(ptr=array.ctypes.data))


def column_major(pointer: int, dtype: Any, rows: int, columns: int, lead: int, offset: int) -> np.ndarray:
    """A matrix as cuBLAS reads it: column j begins `lead` elements after column j - 1."""
    item = np.dtype(dtype).itemsize
    buffer = memoryview((ctypes.c_char * (lead * columns * item)).from_address(pointer + offset * item))
    return np.frombuffer(buffer, dtype).reshape(columns, lead).T[:rows]


def emulate(arguments: tuple[int, ...]) -> None:
    """cublasGemmStridedBatchedEx by its documentation: C = alpha op(A) op(B) + beta C."""
    shape, inputs = ("ta", "tb", "m", "n", "k"), ("alpha", "A", "At", "lda", "sA", "B", "Bt", "ldb", "sB")
    names = (*shape, *inputs, "beta", "C", "Ct", "ldc", "sC", "batches", "compute", "algo")
    g = SimpleNamespace(**dict(zip(names, arguments, strict=True)))
    kinds = {cupy.cuda.runtime.CUDA_R_16F: np.float16, cupy.cuda.runtime.CUDA_R_32F: np.float32}
    alpha, beta = (ctypes.c_float.from_address(p).value for p in (g.alpha, g.beta))
    assert (alpha, beta) == (1, 0) and kinds[g.Ct] is np.float32
    for s in range(g.batches):
        a_shape, b_shape = (g.k, g.m) if g.ta else (g.m, g.k), (g.n, g.k) if g.tb else (g.k, g.n)
        a = column_major(g.A, kinds[g.At], *a_shape, g.lda, s * g.sA).astype(np.float32)
        b = column_major(g.B, kinds[g.Bt], *b_shape, g.ldb, s * g.sB).astype(np.float32)
        c = column_major(g.C, kinds[g.Ct], g.m, g.n, g.ldc, s * g.sC)
        c[...] = (a.T if g.ta else a) @ (b.T if g.tb else b)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_products_are_what_cublas_is_asked_for(dtype: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 16, 40)).astype(dtype), rng.standard_normal((3, 24, 40)).astype(dtype)
    out, one, zero = np.full((3, 16, 24), np.nan, np.float32), np.ones(1, np.float32), np.zeros(1, np.float32)
    pointers = (one.ctypes.data, zero.ctypes.data)
    arguments = cuda.gemm_arguments(pointed(a), pointed(b), pointed(out), *pointers, cublas, cupy.cuda.runtime)
    emulate(arguments)
    np.testing.assert_allclose(out, np.einsum("smd,snd->smn", a.astype(float), b.astype(float)), atol=1e-4)
    modes = {"float16": cublas.CUBLAS_COMPUTE_32F, "float32": cublas.CUBLAS_COMPUTE_32F_PEDANTIC}
    assert arguments[-2] == modes[dtype]
    signature = cublas.gemmStridedBatchedEx.__doc__.split("(")[1].split(",")
    assert len(arguments) == len(signature) - 1  # the handle


def names_of_xp(path: Path) -> set[str]:
    """Attributes taken from the array module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("xp", "self._xp", "self.xp", "backend.xp"):
            found.add(node.attr)
    return found


def test_every_name_used_of_cupy_and_pytorch_exists() -> None:
    folder = Path(cuda.__file__).parent
    used = set().union(*(names_of_xp(folder / f"{name}.py") for name in ("batch", "cuda", "selfcheck")))
    assert {"zeros", "empty", "arange", "from_dlpack", "asnumpy", "RawModule"} <= used
    assert [name for name in sorted(used) if not hasattr(cupy, name)] == []
    names = ("PythonFunctionAllocator", "using_allocator", "Device", "Event", "get_elapsed_time", "runtime")
    assert all(hasattr(cupy.cuda, name) for name in names)
    assert hasattr(cupy.cuda.Stream, "from_external") and hasattr(torch.cuda.Stream, "__cuda_stream__")
    assert callable(torch.cuda.caching_allocator_alloc) and callable(torch.cuda.caching_allocator_delete)


def test_integers_are_passed_in_64_bits() -> None:
    found, calls = cuda.CupyBackend(0), []
    kernel = SimpleNamespace(get_function=lambda name: lambda *args: calls.append((name, *args)))
    found._modules["float16"] = kernel
    array = object()
    found.launch("split", "float16", (3, 2, 1), (array, 1 << 40))
    ((name, grid, block, args),) = calls
    assert (name, grid, block) == ("split", (3, 2, 1), (backend.THREADS,))
    assert args[0] is array and args[1] == 1 << 40 and args[1].dtype == np.int64


class OnGpu:
    """An array that says it is on a GPU."""

    def __init__(self, values: np.ndarray, number: int = 0) -> None:
        self.values, self._number = values, number

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._number


class Backend(HostCuda):
    def array(self, values: Any) -> Any:
        return super().array(values.values if isinstance(values, OnGpu) else values)


@pytest.fixture
def gpu(libraries: dict[str, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "CupyBackend", lambda number: Backend(libraries))


@pytest.mark.usefixtures("gpu")
def test_problems_on_a_gpu_go_to_its_driver(caplog: pytest.LogCaptureFixture) -> None:
    (got,) = kmeans([OnGpu(POINTS)], 5, ids=[3], seed=7, method="direct")
    (expected,) = kmeans([POINTS], 5, ids=[3], seed=7, method="direct")
    np.testing.assert_array_equal(got.labels, expected.labels)
    np.testing.assert_allclose(got.centroids, expected.centroids, rtol=1e-6)


@pytest.mark.usefixtures("gpu")
def test_a_bad_problem_on_a_gpu_loses_no_other() -> None:
    with pytest.raises(BadProblems, match="class 1: k = 50 is more than its 40 points") as caught:
        kmeans([OnGpu(POINTS), OnGpu(POINTS)], [5, 50])
    assert caught.value.results[0] is not None and caught.value.results[1] is None


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("other", [POINTS, OnGpu(POINTS, 1)])
def test_problems_on_several_devices_are_refused(other: Any) -> None:
    with pytest.raises(UsageError, match="move them to one"):
        kmeans([OnGpu(POINTS), other], 5)


def test_what_is_in_memory_stays_there() -> None:
    assert [cuda.device_of(x) for x in (POINTS, torch.zeros(3), [1.0], OnGpu(POINTS, 2))] == [None, None, None, 2]


def test_a_missing_cupy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(PreflightError, match=r"pip install 'd4m-fast\[gpu\]'"):
        kmeans([OnGpu(POINTS)], 5)
