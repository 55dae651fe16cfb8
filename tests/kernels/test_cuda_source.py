"""The kernels as NVIDIA's own compiler takes them: to machine code for three GPUs, within limits."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from host_cuda import kernels, source

from d4m_fast.kernels.backend import THREADS
from d4m_fast.kernels.cuda import options

nvrtc: Any = pytest.importorskip("cuda.bindings.nvrtc", reason="no cuda-bindings: pip install 'd4m-fast[dev]'")
pathfinder: Any = pytest.importorskip("cuda.pathfinder")

REGISTERS = 64  # four blocks of 256 threads share the 65,536 of a multiprocessor
SHARED = 4096  # bytes
BUILDS = ((80, "float16"), (90, "float16"), (100, "float16"), (90, "float32"))


def compiled(gpu: int, points: str) -> tuple[str, int]:
    """The log of the compiler and of the assembler, and the size of the machine code."""
    headers = pathfinder.find_nvidia_header_directory("cudart")
    flags = (*options(points), f"--gpu-architecture=sm_{gpu}", "-ftz=true", f"-I{headers}", "--ptxas-options=-v")
    _, program = nvrtc.nvrtcCreateProgram(source().encode(), b"kmeans.cu", 0, [], [])
    nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
    log = bytearray(nvrtc.nvrtcGetProgramLogSize(program)[1])
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.decode(), nvrtc.nvrtcGetCUBINSize(program)[1]


def resources_of(log: str) -> dict[str, tuple[int, int, int]]:
    """Registers, bytes spilled and bytes of shared memory of each kernel."""
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        shared = re.search(r"(\d+) bytes smem", part)
        registers = re.search(r"Used (\d+) registers", part)
        assert registers is not None, part
        found[name] = (int(registers[1]), spilled, int(shared[1]) if shared else 0)
    return found


@pytest.fixture(scope="module")
def logs() -> dict[tuple[int, str], tuple[str, int]]:
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(BUILDS, pool.map(lambda build: compiled(*build), BUILDS), strict=True))


@pytest.mark.parametrize(("gpu", "points"), BUILDS)
def test_every_kernel_compiles_within_limits(logs: Any, gpu: int, points: str) -> None:
    log, size = logs[gpu, points]
    found = resources_of(log)
    assert sorted(found) == sorted(kernels(source())), log
    assert size > 0 and "warning" not in log and "error" not in log
    for name, (registers, spilled, shared) in found.items():
        assert (registers <= REGISTERS, spilled, shared <= SHARED) == (True, 0, True), name


def test_a_kernel_that_spills_is_noticed() -> None:
    log = (
        "ptxas info    : Compiling entry function 'a' for 'sm_90'\n"
        "ptxas         .     16 bytes stack frame, 28 bytes spill stores, 20 bytes spill loads\n"
        "ptxas info    : Used 48 registers, used 1 barriers, 16 bytes cumulative stack size, 128 bytes smem\n"
    )
    assert resources_of(log) == {"a": (48, 48, 128)}


def test_blocks_are_as_large_as_the_driver_launches_them() -> None:
    assert f"constexpr int BLOCK = {THREADS};" in source()
