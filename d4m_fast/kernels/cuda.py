"""The CuPy backend: the kernels on an NVIDIA GPU, products by cuBLAS, with PyTorch's stream and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any

import numpy as np

from d4m_fast.errors import PreflightError
from d4m_fast.kernels.backend import THREADS, DeviceArray
from d4m_fast.kernels.problem import Array

# In this order: points.cu defines what the others use.
SOURCES = ("points", "seeding", "clusters", "lloyd", "gram")
POINT_TYPES = {"float16": "__half", "float32": "float"}
WORKSPACE = 2 << 30  # bytes: 30 classes of ImageNet in Stable Diffusion's latents
DLPACK_GPU = (2, 13)  # kDLCUDA, kDLCUDAManaged


def device_of(points: Any) -> int | None:
    """Return the number of the NVIDIA GPU that holds a tensor or an array of any library, or None."""
    if not hasattr(points, "__dlpack_device__"):
        return None
    kind, number = points.__dlpack_device__()
    return int(number) if kind in DLPACK_GPU else None


def source() -> str:
    """Return the CUDA source of all kernels."""
    folder = resources.files("d4m_fast.kernels")
    return "\n".join((folder / f"{name}.cu").read_text(encoding="utf-8") for name in SOURCES)


def options(points: str) -> tuple[str, ...]:
    """Return options of the compiler; CuPy adds its own, among them -ftz=true and the GPU's architecture."""
    return ("--std=c++17", f"-DPOINT={POINT_TYPES[points]}")


class CupyBackend:
    """The `Backend` on an NVIDIA GPU.

    Raises:
        PreflightError: no CuPy.
    """

    xp: Any
    workspace = WORKSPACE

    def __init__(self, device: int) -> None:
        self.xp = require_cupy()
        self._device = device
        self._modules = {}
        for points in POINT_TYPES:
            self._modules[points] = self.xp.RawModule(code=source(), options=options(points), backend="nvrtc")

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Make PyTorch's current stream CuPy's, and take memory from its caching allocator."""
        import torch

        cuda = self.xp.cuda
        allocator = cuda.PythonFunctionAllocator(_allocate, _free)
        stream = cuda.Stream.from_external(torch.cuda.current_stream(self._device))
        with cuda.Device(self._device), cuda.using_allocator(allocator.malloc), stream:
            yield

    def array(self, values: Any) -> DeviceArray:
        if device_of(values) is None:
            return self.xp.asarray(values)
        return self.xp.from_dlpack(values.detach() if hasattr(values, "detach") else values)

    def host(self, values: DeviceArray) -> Array:
        return np.asarray(self.xp.asnumpy(values))

    def launch(self, kernel: str, points: str, grid: tuple[int, int, int], args: Sequence[Any]) -> None:
        function = self._modules[points].get_function(kernel)
        # The kernels read integers of 64 bits.
        function(grid, (THREADS,), tuple(np.int64(arg) if isinstance(arg, int) else arg for arg in args))

    def product(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
        from cupy.cuda.device import get_cublas_handle
        from cupy_backends.cuda.libs import cublas

        alpha, beta = np.ones(1, np.float32), np.zeros(1, np.float32)
        arguments = gemm_arguments(a, b, out, alpha.ctypes.data, beta.ctypes.data, cublas, self.xp.cuda.runtime)
        cublas.gemmStridedBatchedEx(get_cublas_handle(), *arguments)

    def seconds(self, action: Callable[[], object]) -> float:
        """Return the seconds of GPU time that an action takes."""
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        start.record()
        action()
        end.record()
        end.synchronize()
        return float(self.xp.cuda.get_elapsed_time(start, end)) / 1e3


def gemm_arguments(
    a: DeviceArray, b: DeviceArray, out: DeviceArray, alpha: int, beta: int, cublas: Any, runtime: Any
) -> tuple[int, ...]:
    """Return the arguments of cuBLAS, after its handle, for out[s] = a[s] b[s]^T.

    Its matrices are column-major, so that row-major (M, N) is its N x M: it computes out^T = b a^T with b, which it
    sees transposed, transposed back. float32 points use the pedantic mode, which no setting turns into TF32.
    """
    slots, m, d = a.shape
    n = b.shape[1]
    half = a.dtype == np.float16
    kind = runtime.CUDA_R_16F if half else runtime.CUDA_R_32F
    compute = cublas.CUBLAS_COMPUTE_32F if half else cublas.CUBLAS_COMPUTE_32F_PEDANTIC
    shape = (cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, n, m, d)
    inputs = (alpha, b.data.ptr, kind, d, n * d, a.data.ptr, kind, d, m * d)
    output = (beta, out.data.ptr, runtime.CUDA_R_32F, n, m * n)
    return (*shape, *inputs, *output, slots, compute, cublas.CUBLAS_GEMM_DEFAULT)


def require_cupy() -> Any:
    """Import CuPy, which is optional.

    Raises:
        PreflightError: it is not installed.
    """
    try:
        import cupy
    except ImportError as error:
        raise PreflightError("k-means on a GPU needs CuPy: pip install 'd4m-fast[gpu]'") from error
    return cupy


def _allocate(size: int, device: int) -> int:
    import torch

    return int(torch.cuda.caching_allocator_alloc(size, device, torch.cuda.current_stream(device)))


def _free(pointer: int, device: int) -> None:
    import torch

    torch.cuda.caching_allocator_delete(pointer)  # type: ignore[no-untyped-call]
