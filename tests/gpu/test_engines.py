"""What needs an NVIDIA GPU: `pip install -e .[gpu,dev]`, then `pytest -m gpu tests/gpu`. We have not run it yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving import CLASSES, Ran, run_cli, write_photos
from models import write_model
from PIL import Image

from d4m_fast.engine.trt import TorchDevice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]
Export = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", CLASSES, 12)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 16 channels, for which there are fused attention kernels."""
    return write_model(tmp_path_factory.mktemp("model"), unet_channels=(32, 64), width_text=32)


@pytest.fixture
def common(model: Path, data: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("--model", model, "--data", data, "--artifacts", tmp_path / "art", "--quiet")


@pytest.fixture
def export(common: tuple[object, ...], tmp_path: Path) -> Export:
    def run(*args: object) -> dict[str, Any]:
        ran = run_cli("export", *common, "--json", *args)
        assert ran.code == 0, ran.err
        return ran.json

    return run


@pytest.fixture
def distill(common: tuple[object, ...], tmp_path: Path) -> Callable[..., np.ndarray]:
    """The images of a run, (N, H, W, 3)."""

    def run(name: str, *args: object) -> np.ndarray:
        ran: Ran = run_cli("distill", *common, "--ipc", 2, "--out", tmp_path / name, *args)
        assert ran.code == 0, ran.err
        files = sorted((tmp_path / name).glob("images/*/*.png"))
        return np.stack([np.asarray(Image.open(file)) for file in files]).astype(float)

    return run


def decibels(expected: np.ndarray, got: np.ndarray) -> float:
    error = ((expected - got) ** 2).mean(axis=(1, 2, 3)).max()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def test_half_precision_is_near_the_cpu(distill: Callable[..., np.ndarray]) -> None:
    prototypes = ("--latent", "mean", "--engine", "torch")
    cpu = distill("cpu", *prototypes, "--device", "cpu")
    gpu = distill("gpu", *prototypes, "--device", "cuda")
    assert decibels(cpu, gpu) >= 30


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_on_the_gpu(export: Export, distill: Callable[..., np.ndarray], precision: str) -> None:
    found = export("--precision", precision)
    assert (found["status"], found["compared"]) == ("certified", "ONNX Runtime on cuda")
    assert found["device"].startswith("NVIDIA")
    assert found["speed"]["ratio"] > 0
    torch_images = distill("torch", "--engine", "torch", "--precision", precision)
    assert decibels(torch_images, distill("onnx", "--engine", "onnx", "--precision", precision)) >= 30


def test_tensorrt(export: Export, distill: Callable[..., np.ndarray], tmp_path: Path) -> None:
    found = export("--engine", "tensorrt", "--precision", "fp16")
    assert (found["status"], found["compared"]) == ("certified", "TensorRT on cuda")
    for part in found["components"].values():
        assert part["engine"]["inspected"]["fp16"] > 0
    torch_images = distill("torch", "--engine", "torch")
    assert decibels(torch_images, distill("trt", "--engine", "tensorrt")) >= 30
    config = json.loads((tmp_path / "trt" / "config.json").read_text())
    assert config["options"]["engine"] == "tensorrt"


def test_tensorrt_is_certified_again_without_a_build(export: Export, tmp_path: Path) -> None:
    args = ("--engine", "tensorrt", "--precision", "fp16")
    export(*args)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.engine")}
    assert export(*args, "--certify")["status"] == "certified"
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.engine")} == before


def test_certify(common: tuple[object, ...], tmp_path: Path) -> None:
    """Every engine, precision and stage, and the kernels of k-means; minutes, most of them builds and compilations."""
    args = ("certify", *common, "--out", tmp_path / "out", "--images", 4, "--seconds", 2, "--batches", "1,4", "--json")
    ran = run_cli(*args)
    assert ran.code == 0, ran.out
    found = ran.json
    assert (found["passed"], found["complete"], found["not_here"]) == (True, True, {})
    assert found["machine"]["driver"]
    kinds = ("torch", "compiled", "onnx", "tensorrt")
    assert set(found["engines"]) == {f"{kind}-{p}" for kind in kinds for p in ("fp32", "fp16")}
    for row in found["engines"].values():
        assert row["generate"] > 0
        for figures in row["stages"].values():
            assert 0 <= figures["busy_share"] <= 1
            assert figures["watts"]["mean"] > 0
            assert figures["sm_mhz"]["max"] > 0
    assert found["engines"]["compiled-fp16"]["ratio"] == 1
    assert found["steps"]["kernels"]["figures"]["timings"]
    assert "torch.compile fp16" in run_cli("certify", "--render", tmp_path / "out" / "certify.json").out


def test_a_compiled_run(distill: Callable[..., np.ndarray]) -> None:
    plain = distill("plain", "--engine", "torch")
    assert decibels(plain, distill("compiled", "--compile")) >= 30


def test_a_captured_launch_is_repeated_in_order() -> None:
    device = TorchDevice(torch.device("cuda"))
    x = torch.zeros(1 << 20, device="cuda")

    def launch() -> None:
        x.add_(1)

    def on_the_stream() -> None:
        stream = torch.cuda.ExternalStream(device.stream)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            launch()

    device.ordered(on_the_stream)
    replay = device.capture(launch)
    for _ in range(3):
        device.ordered(replay)
    assert float(x.mean()) == 4


def test_the_shared_block_grows() -> None:
    device = TorchDevice(torch.device("cuda"))
    _, first = device.block(1 << 10)
    address, second = device.block(1 << 20)
    assert second == first + 1
    assert device.block(1 << 10) == (address, second)
