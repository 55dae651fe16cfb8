"""ONNX Runtime's runtime on an exported UNet and decoder: shares of a batch, kept prompts, and one fixed memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.model import open_model
from d4m_fast.engine.ort import Context, OrtFile, OrtRuntime, open_ort
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.signature import SIGNATURES
from d4m_fast.errors import ModelError
from d4m_fast.export.hoist import hoist_context
from d4m_fast.export.to_onnx import export_onnx

CPU = torch.device("cpu")
UNET = SIGNATURES["unet"]


@pytest.fixture(scope="module")
def sizes(tiny_model: Path) -> dict[str, int]:
    return open_model(str(tiny_model)).sizes(16)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, sizes: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is exported, prompts included."""
    file = tmp_path_factory.mktemp("plain") / "unet.onnx"
    report = export_onnx(tiny_model, "unet", file, sizes=sizes, opset=20, metadata={}, for_ort=True)
    assert report.operators["MultiHeadAttention"] > 0
    return file


@pytest.fixture(scope="module")
def hoisted(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("hoisted") / "unet.onnx"
    file.write_bytes(plain.read_bytes())
    names = hoist_context(file, file.with_name("unet.context.onnx"))
    assert len(names) >= 2
    assert not list(file.parent.glob(".hoist-*"))
    return file


@pytest.fixture(scope="module")
def eager(tiny_model: Path) -> Runtime:
    return open_eager(tiny_model, "unet", CPU, torch.float32)


def call(sizes: dict[str, int], samples: int, halves: int, timestep: int = 501) -> Tensors:
    generator = torch.Generator().manual_seed(samples)
    shapes = {n: UNET.shape(n, sizes, halves * samples, samples=samples) for n in ("sample", "hidden_states")}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**made, "timestep": torch.tensor(timestep)}


def assert_near(got: Tensors, wanted: Tensors) -> None:
    torch.testing.assert_close(got["noise"], wanted["noise"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("halves", [1, 2])
def test_any_number_of_samples_on_any_number_of_threads(
    hoisted: Path, eager: Runtime, sizes: dict[str, int], threads: int, halves: int
) -> None:
    runtime = open_ort(hoisted, "unet", sizes, CPU, threads=threads)
    for samples in (1, 2, 3, 5, 8, 12, 13):
        inputs = call(sizes, samples, halves)
        assert_near(runtime(inputs), eager(inputs))


def test_prompts_kept_are_these_prompts(hoisted: Path, eager: Runtime, sizes: dict[str, int]) -> None:
    """Changed in place, too: kept are the numbers, not the tensor."""
    runtime = open_ort(hoisted, "unet", sizes, CPU, threads=2)
    inputs = call(sizes, 6, 2)
    runtime(inputs)
    inputs["hidden_states"][3] += 1
    assert_near(runtime(inputs), eager(inputs))
    later = {**inputs, "timestep": torch.tensor(21), "sample": inputs["sample"] + 1}
    assert_near(runtime(later), eager(later))


def test_prompts_are_read_once(hoisted: Path, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, made = open_ort(hoisted, "unet", sizes, CPU, threads=2), list[int]()
    run_context = OrtFile.run_context

    def counted(file: OrtFile, prompts: torch.Tensor, threads: int) -> Context:
        made.append(len(prompts))
        return run_context(file, prompts, threads)

    monkeypatch.setattr(OrtFile, "run_context", counted)
    for timestep in (701, 681, 661):
        runtime(call(sizes, 6, 2, timestep))
    assert made == [6, 6]  # each thread's share, once


def test_a_file_that_was_not_split(plain: Path, eager: Runtime, sizes: dict[str, int]) -> None:
    inputs = call(sizes, 3, 2)
    assert_near(open_ort(plain, "unet", sizes, CPU, threads=2)(inputs), eager(inputs))


def test_a_context_of_another_network(plain: Path, hoisted: Path, sizes: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "unet.onnx").write_bytes(plain.read_bytes())
    (tmp_path / "unet.context.onnx").write_bytes((hoisted.parent / "unet.context.onnx").read_bytes())
    with pytest.raises(ModelError, match="are not a unet's"):
        open_ort(tmp_path / "unet.onnx", "unet", sizes, CPU, threads=2)


def test_fixed_memory_as_a_cuda_graph_needs_it(plain: Path, eager: Runtime, sizes: dict[str, int]) -> None:
    """The same addresses in every call; what is returned is the caller's."""
    file = OrtFile(plain, "unet", CPU, threads=1, captured=True)
    runtime = OrtRuntime(file, "unet", sizes, threads=1, shared=False)
    first, second = call(sizes, 2, 2), call(sizes, 2, 2, 21)
    second["sample"] = second["sample"] + 1
    got = runtime(first)
    assert_near(runtime(second), eager(second))
    assert_near(got, eager(first))
