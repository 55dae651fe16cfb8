"""What an allocation that fails looks like, from the libraries themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from d4m_fast.engine import memory
from d4m_fast.engine.memory import fitting, free_memory, host_empty, is_exhaustion, to_device, to_host
from d4m_fast.engine.runtime import Runtime
from d4m_fast.errors import OutOfMemoryError

CPU = torch.device("cpu")
HUGE = 1 << 50


def by_torch() -> None:
    torch.empty(HUGE)


def by_numpy() -> None:
    np.empty(HUGE)


def by_python() -> None:
    bytearray(HUGE)


def by_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


@pytest.mark.parametrize("allocate", [by_torch, by_numpy, by_python, by_cuda])
def test_a_failed_allocation_is_one(allocate: Callable[[], None]) -> None:
    with pytest.raises(OutOfMemoryError, match=r"^decode: out of memory \(.+\)$") as raised, fitting("decode"):
        allocate()
    assert raised.value.stage == "decode"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory")])
def test_other_errors_are_not(error: Exception) -> None:
    with pytest.raises(type(error)), fitting("decode"):
        raise error


def test_onnx_runtimes_is_one(tmp_path: Path) -> None:
    """A graph that needs four tebibytes on the way to 192 numbers."""
    pytest.importorskip("onnxruntime")
    runtime = ort_runtime(tmp_path)
    with pytest.raises(MemoryError) as raised:
        runtime({"latents": torch.zeros(1, 1, 1, 1)})
    assert is_exhaustion(raised.value)


def ort_runtime(folder: Path) -> Runtime:
    onnx = pytest.importorskip("onnx")
    from d4m_fast.engine.ort import open_ort

    make, shape = onnx.helper, onnx.TensorProto
    nodes = [
        make.make_node("Reshape", ["latents", "flat"], ["one"]),
        make.make_node("Expand", ["one", "many"], ["wide"]),
        make.make_node("ReduceMax", ["wide"], ["largest"], keepdims=0),
        make.make_node("Expand", ["largest", "image"], ["pixels"]),
    ]
    constants = [
        make.make_tensor(name, shape.INT64, [len(value)], value)
        for name, value in (("flat", [1]), ("many", [1 << 40]), ("image", [1, 3, 8, 8]))
    ]
    inputs = [make.make_tensor_value_info("latents", shape.FLOAT, [1, 1, 1, 1])]
    outputs = [make.make_tensor_value_info("pixels", shape.FLOAT, [1, 3, 8, 8])]
    graph = make.make_graph(nodes, "needs", inputs, outputs, constants)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "needs.onnx")
    sizes = {"channels": 1, "h": 1, "w": 1, "3": 3, "height": 8, "width": 8}
    return open_ort(folder / "needs.onnx", "vae_decoder", sizes, CPU, threads=1)


def test_free_memory_of_the_machine_is_the_systems_own_figure() -> None:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total = 1024 * int(fields["MemTotal"].split()[0])
    assert total / 50 < free_memory(CPU) <= total


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = free_memory(CPU)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\nfile 9999999\n")
    assert free_memory(CPU) == 3_000_000 < unlimited
    (tmp_path / "memory.max").write_text("1000000\n")
    assert free_memory(CPU) == 0


def test_copies_on_a_cpu_are_the_tensor_itself() -> None:
    x = host_empty((2, 3), torch.float32, CPU)
    assert (x.shape, x.dtype, x.is_pinned()) == ((2, 3), torch.float32, False)
    assert to_device(x, CPU) is x
    assert to_host(x)() is x
