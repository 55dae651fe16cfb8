"""What export and its runtimes refuse when a library does not do what it was asked for."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
import torch

from d4m_fast.config.export import ExportConfig
from d4m_fast.engine import ort
from d4m_fast.engine.artifacts import Artifact
from d4m_fast.engine.model import open_model
from d4m_fast.engine.ort import open_ort, require_ort
from d4m_fast.engine.trt_api import Api, load_trt
from d4m_fast.errors import ModelError, PreflightError
from d4m_fast.export import export, to_onnx, to_trt
from d4m_fast.export.job import ExportJob, _has_other_options, prepare_export
from d4m_fast.export.to_onnx import export_onnx
from d4m_fast.export.to_trt import BuildOptions, Range

SIZES = {"channels": 4, "h": 8, "w": 8, "3": 3, "height": 16, "width": 16}
GPU = torch.device("cuda:0")


def export_decoder(model: Path, file: Path) -> object:
    sizes = open_model(str(model)).sizes(16)
    return export_onnx(model, "vae_decoder", file, sizes=sizes, opset=20, metadata={})


def test_an_exporter_that_fails(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand a page more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"vae_decoder cannot be exported .*no such operator and a page more"):
        export_decoder(tiny_model, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_exporter_that_returns_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(ModelError, match="returned nothing"):
        export_decoder(tiny_model, tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("latents", ("n", 4, 8, 8), None),
        ("latents", (2, 4, 8, 8), "axis batch of latents is 2 in the graph, asked for was any number"),
        ("latents", ("n", 4, 8, 16), "axis w of latents is 16 in the graph, asked for was 8"),
        ("sample", ("n", 4, 8, 8), "named a tensor sample"),
    ],
)
def test_a_graph_that_is_not_what_was_asked_for(name: str, shape: tuple[Any, ...], said: str | None) -> None:
    pixels = ir.Value(name="pixels", shape=ir.Shape(("n", 3, 16, 16)))
    graph = ir.Graph([ir.Value(name=name, shape=ir.Shape(shape))], [pixels], nodes=[])
    if said is None:
        to_onnx._require_shapes(graph, "vae_decoder", SIZES, None, Path("x.onnx"))
    else:
        with pytest.raises(ModelError, match=said):
            to_onnx._require_shapes(graph, "vae_decoder", SIZES, None, Path("x.onnx"))


def test_no_provider_for_the_device() -> None:
    assert "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    with pytest.raises(PreflightError, match=r"pip uninstall onnxruntime and pip install 'd4m-fast\[gpu\]'"):
        require_ort(GPU)


def test_a_provider_that_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime does, without a word, where a provider's library does not load."""
    monkeypatch.setattr(ort, "require_ort", lambda _: onnxruntime)
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(PreflightError, match="fell back to CPUExecutionProvider; CUDAExecutionProvider did not load"):
        open_ort(tmp_path / "unet.onnx", "unet", SIZES, GPU, threads=1)


def test_a_library_whose_parts_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(PreflightError, match=r"does not load \(libnvinfer.so.11.*pip install 'd4m-fast\[gpu\]'"):
        load_trt("tensorrt")


class Enumeration:
    """Every name is in it."""

    def __getattr__(self, name: str) -> str:
        return name


class Refusing:
    """A builder's config that takes neither targets nor profiles."""

    def __getattr__(self, name: str) -> Any:
        return {"add_optimization_profile": lambda _: -1, "set_compute_capability": lambda *_: False}.get(
            name, lambda *_: None
        )


def test_a_target_or_a_profile_that_the_builder_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    enumerations = {name: Enumeration() for name in ("BuilderFlag", "MemoryPoolType", "ProfilingVerbosity")}
    api = Api(SimpleNamespace(__version__="1.7", **enumerations), "tensorrt-rtx")
    monkeypatch.setattr(to_trt, "capabilities", lambda *_: ["SM89"])
    monkeypatch.setattr(to_trt, "_monitor", lambda *_: None)
    profile = SimpleNamespace(set_shape=lambda *_: None)
    builder: Any = SimpleNamespace(create_builder_config=Refusing, create_optimization_profile=lambda: profile)
    with pytest.raises(PreflightError, match="--target sm89: tensorrt-rtx refuses it"):
        to_trt._builder_config(api, builder, BuildOptions("fp16", ("sm89",)), lambda _: None)
    network: Any = SimpleNamespace(name="unet", num_inputs=0, get_input=lambda _: None)
    with pytest.raises(ModelError, match="no profile for 1 to 8 rows can be added"):
        config: Any = Refusing()
        to_trt._add_profile(builder, config, network, "vae_decoder", SIZES, Range(1, 8, 8))


def job(model: Path, tmp_path: Path, **options: Any) -> ExportJob:
    return prepare_export(ExportConfig(model=str(model), resolution=16, device="cpu", **options), tmp_path)


def test_a_fixed_batch_beyond_32_bit_indices(tiny_model: Path, tmp_path: Path) -> None:
    fixed, free = job(tiny_model, tmp_path, static_batch=50), job(tiny_model, tmp_path)
    with pytest.raises(ModelError, match="--static-batch: unet takes 10 images at most"):
        fixed.require_countable("unet", (2**31 - 1) // 20)
    fixed.require_countable("unet", (2**31 - 1) // 100)
    free.require_countable("unet", 2**31)


def test_no_version_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "versions", lambda *names: dict.fromkeys(names, "not installed"))
    with pytest.raises(PreflightError, match="no version of tensorrt on record: install it from tensorrt-cu13"):
        export._require_versions("tensorrt")


def test_a_set_compared_on_more_images_serves(tiny_model: Path, tmp_path: Path) -> None:
    """One compared on fewer, or built otherwise, is made anew."""
    asked = job(tiny_model, tmp_path, images=8)
    for changed, anew in (({}, False), ({"images": 32}, False), ({"images": 7}, True), ({"level": 5}, True)):
        made = Artifact(tmp_path, {"options": {**asdict(asked.config), **changed}})
        assert _has_other_options(made, asked.config) == anew
