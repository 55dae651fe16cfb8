"""TensorRT engines, really built ahead of time by TensorRT for RTX, and what is refused before and after."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import CLASSES, Ran, refused, run_cli, write_photos
from models import write_model

from d4m_fast.engine.model import open_model
from d4m_fast.engine.trt_api import load_trt
from d4m_fast.errors import ModelError
from d4m_fast.export.calibration import activation_maxima
from d4m_fast.export.mixed import to_mixed_precision
from d4m_fast.export.to_onnx import export_onnx
from d4m_fast.export.to_trt import BuildOptions, Range, build_engine, check_engine, ranges
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None and importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: pip install 'd4m-fast[rtx]'",
)
NAMES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
FEW = ("--images", 4)  # to compare on


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "many", CLASSES, 12)


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 16 channels, for which there are fused attention kernels."""
    return write_model(tmp_path_factory.mktemp("wide"), unet_channels=(32, 64), width_text=32)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, wide_model: Path, many: Path, eight_calls: None) -> Path:
    """An artifacts directory with fp16 engines; not to be changed."""
    artifacts = tmp_path_factory.mktemp("built")
    args = ("--model", wide_model, "--data", many, "--artifacts", artifacts, *FEW, "--threads", 1)
    ran = run_cli("export", *args, "--engine", "tensorrt", "--precision", "fp16", "--target", "sm89,sm80", "--quiet")
    assert ran.code == 0, ran.err
    assert "unverified" in ran.out
    return artifacts


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny decoder in fp32 and fp16."""
    folder, sizes = tmp_path_factory.mktemp("halves"), open_model(str(tiny_model)).sizes(16)
    source = folder / "vae_decoder.fp32.onnx"
    export_onnx(tiny_model, "vae_decoder", source, sizes=sizes, opset=23, metadata={})
    feed = {"latents": np.random.default_rng(0).standard_normal((2, 4, 8, 8), dtype=np.float32)}
    to_mixed_precision(source, folder / "vae_decoder.onnx", activation_maxima(source, [feed], threads=1))
    return folder


def certificate(artifacts: Path) -> dict[str, Any]:
    (file,) = artifacts.rglob("certificate.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def build(halves: Path, tiny_model: Path, target: Path, source: str = "vae_decoder.onnx", **changed: Any) -> Any:
    options = {"precision": "fp16", "targets": ("sm89",), **changed}
    attentions = options.pop("attentions", 1)
    sizes = open_model(str(tiny_model)).sizes(16)
    say: list[str] = []
    report = build_engine(
        load_trt("tensorrt-rtx"),
        halves / source,
        target,
        "vae_decoder",
        sizes,
        ranges(8, None),
        BuildOptions(**options),
        attentions=attentions,
        say=say.append,
    )
    assert say
    return report


@rtx
def test_the_certificate_of_what_was_built(built: Path) -> None:
    found = certificate(built)
    assert (found["status"], found["library"], found["targets"]) == ("unverified", "tensorrt-rtx", ["sm80", "sm89"])
    assert "every fp16 value rounded" in found["compared"]
    assert found["speed"] is None
    assert set(found["files"]) == {f"{name}.{kind}" for name in NAMES for kind in ("engine", "onnx")}
    assert found["images"]["psnr_worst"] >= 30
    assert max(p["relative_l2"] for p in found["components"]["unet"]["parity"]) > 1e-5  # it is not fp32
    for name in NAMES:
        engine = found["components"][name]["engine"]
        assert engine["attentions"] == found["components"][name]["operators"].get("Attention", 0)
        assert not any(kind.endswith("FLOAT") for kind in engine["layers"] if kind.startswith(("CONV", "MATRIX")))
        assert engine["seconds"] > 0
        assert engine["peak_bytes"] > 0
        assert engine["bytes"] == found["files"][f"{name}.engine"]["bytes"]
    assert found["components"]["unet"]["engine"]["profiles"][-1]["most"] == 100
    assert found["components"]["vae_decoder"]["engine"]["profiles"][-1]["most"] == 50
    assert (built / "engines").exists()
    assert len(list(built.rglob("*.engine.log"))) == 4


@rtx
def test_what_has_not_run_on_its_gpu_is_listed_and_left_alone(built: Path, wide_model: Path, many: Path) -> None:
    (row,) = run_cli("export", "--list", "--json", "--artifacts", built).json["artifacts"]
    assert (row["status"], row["engine"], row["speed"]) == ("unverified", "tensorrt", None)
    before = {file: file.stat().st_mtime_ns for file in built.rglob("*")}
    args = ("--model", wide_model, "--data", many, "--artifacts", built, *FEW, "--threads", 1)
    again = run_cli("export", *args, "--engine", "tensorrt", "--precision", "fp16", "--target", "sm80,sm89")
    assert (again.code, again.err) == (0, "")
    assert {file: file.stat().st_mtime_ns for file in built.rglob("*")} == before


@rtx
def test_engines_are_refused_on_a_cpu(built: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "art", dirs_exist_ok=True)
    refused(distill("--engine", "tensorrt"), 6, "needs an NVIDIA GPU")
    ran = distill()
    assert (ran.code, "engine: torch" in ran.err) == (0, True)


def test_tensorrt_without_a_gpu(distill: Callable[..., Ran]) -> None:
    refused(distill("--engine", "tensorrt"), 6, "needs an NVIDIA GPU")


def test_a_build_without_a_gpu_needs_a_target(tmp_path: Path) -> None:
    ran = run_cli("export", "--engine", "tensorrt", "--artifacts", tmp_path / "art")
    refused(ran, 6, "no GPU here", "--target sm89")


@rtx
def test_a_target_it_does_not_build_for(tmp_path: Path) -> None:
    ran = run_cli("export", "--engine", "tensorrt", "--target", "sm90", "--artifacts", tmp_path / "art")
    refused(ran, 6, "--target sm90", "sm80, sm86, sm89")
    assert not (tmp_path / "art").exists()


@pytest.mark.parametrize("args", [("--engine", "tensorrt", "--target", "ampere"), ("--target", "sm80")])
def test_a_target_that_is_none(tmp_path: Path, args: tuple[str, ...]) -> None:
    refused(run_cli("export", *args, "--artifacts", tmp_path / "art"), 2, "--target")


def test_a_missing_library_names_the_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    ran = run_cli("export", "--engine", "tensorrt", "--target", "sm80", "--artifacts", tmp_path / "art")
    refused(ran, 6, "pip install 'd4m-fast[rtx]'")


def test_certify_needs_something_to_certify(tmp_path: Path, tiny_model: Path, many: Path) -> None:
    args = ("--model", tiny_model, "--data", many, "--artifacts", tmp_path / "art", "--certify")
    refused(run_cli("export", *args), 1, "nothing exported there")


@rtx
def test_built(halves: Path, tiny_model: Path, tmp_path: Path) -> None:
    report = build(halves, tiny_model, tmp_path / "decoder.engine")
    assert report.bytes == (tmp_path / "decoder.engine").stat().st_size > 10_000
    assert report.profiles == (Range(1, 1, 1), Range(2, 8, 8))
    assert report.attentions == 1
    assert "INFO" in (tmp_path / "decoder.engine.log").read_text()


@rtx
@pytest.mark.parametrize(
    ("source", "changed", "said"),
    [
        ("vae_decoder.fp32.onnx", {}, "fp16 was asked for"),
        ("vae_decoder.onnx", {"precision": "fp32"}, "fp32 was asked for"),
        ("vae_decoder.onnx", {"attentions": 2}, "2 attentions, of which 1"),
    ],
)
def test_not_what_was_asked_for(
    halves: Path, tiny_model: Path, tmp_path: Path, source: str, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        build(halves, tiny_model, tmp_path / "decoder.engine", source, **changed)
    assert not (tmp_path / "decoder.engine").exists()


@rtx
def test_a_file_that_cannot_be_parsed(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "vae_decoder.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot read node"):
        build(tmp_path, tiny_model, tmp_path / "decoder.engine")


@rtx
def test_attention_without_a_fused_kernel_is_not_built(tiny_model: Path, tmp_path: Path) -> None:
    """Of the tiny text encoder, with heads of eight channels: an engine that lost it would be slow without a word."""
    sizes, file = open_model(str(tiny_model)).sizes(16), tmp_path / "text_encoder.onnx"
    export_onnx(tiny_model, "text_encoder", file, sizes=sizes, opset=23, metadata={})
    with pytest.raises(ModelError, match="Attention operation was not supported by a dedicated kernel"):
        build_engine(
            load_trt("tensorrt-rtx"),
            file,
            tmp_path / "text_encoder.engine",
            "text_encoder",
            sizes,
            ranges(2, None),
            BuildOptions("fp32", ("sm89",)),
            attentions=1,
            say=lambda phase: None,
        )


def test_ranges() -> None:
    assert ranges(100, None) == (Range(1, 1, 1), Range(2, 8, 8), Range(9, 100, 100))
    assert ranges(8, None) == (Range(1, 1, 1), Range(2, 8, 8))
    assert ranges(1, None) == (Range(1, 1, 1),)
    assert ranges(100, 16) == (Range(16, 16, 16),)


@pytest.mark.parametrize("static", [None, 5])
def test_elements_of_the_largest_activation(tiny_model: Path, tmp_path: Path, static: int | None) -> None:
    """Of the decoder: the feature map of 16 channels that it has just doubled."""
    sizes, file = open_model(str(tiny_model)).sizes(16), tmp_path / "decoder.onnx"
    report = export_onnx(tiny_model, "vae_decoder", file, sizes=sizes, opset=23, static_batch=static, metadata={})
    assert report.elements_per_row == 16 * 16 * 16


def layers(*outputs: tuple[str, list[int]]) -> str:
    """The inspector's JSON, in its documented form."""
    return json.dumps(
        {
            "Layers": [
                {"Name": f"layer {i}", "Outputs": [{"Name": f"t{i}", "Dimensions": d, "Format/Datatype": kind}]}
                for i, (kind, d) in enumerate(outputs)
            ]
        }
    )


def test_what_an_engine_runs_in() -> None:
    halves = layers(("Channel major FP16 format", [2, 4096, 320]), ("Row major linear FP32", [2, 1280]))
    assert check_engine(halves, "fp16", [4096], "unet") == {"fp16": 1, "fp32": 1}


@pytest.mark.parametrize(
    ("information", "said"),
    [
        (layers(("Row major linear FP32", [2, 4096, 320])), "fp16 was asked for"),
        (layers(("Row major linear FP16 format", [16, 4096, 4096])), "attention is not fused"),
    ],
)
def test_an_engine_that_is_not_what_was_asked_for(information: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        check_engine(information, "fp16", [4096], "unet")


@rtx
def test_one_engine_build_per_node(tmp_path: Path, tiny_model: Path, photos: Path) -> None:
    args = ("--model", tiny_model, "--data", photos, "--artifacts", tmp_path, "--quiet", "--engine", "tensorrt")
    with locked(files.make_directory(tmp_path / "engines" / f".building-on-{platform.node()}")):
        refused(run_cli("export", *args, "--target", "sm89"), 4, "in use by another run")
    assert not list(tmp_path.rglob("*.onnx"))
    assert run_cli("export", "--list", "--json", "--artifacts", tmp_path).json["artifacts"] == []
