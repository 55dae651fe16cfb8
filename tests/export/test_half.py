"""fp16 exports beside PyTorch's own half precision: sound ones of random weights pass, and no faulty one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import CLASSES, Ran, run_cli, write_photos
from models import write_model
from mutants import (
    Exaggerated,
    Fault,
    correct,
    mutate,
    overflow,
    permuted_batch,
    shifted_timestep,
    stale_buffer,
    swapped_halves,
)
from safetensors.torch import load_file, save_file

from d4m_fast.engine.artifacts import Artifact
from d4m_fast.engine.networks import open_networks
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.export import export
from d4m_fast.export.comparison import HALF_IMAGES, Candidate
from d4m_fast.export.job import ExportJob
from d4m_fast.export.limits import HALF_RATIO, LIMITS

pytestmark = pytest.mark.usefixtures("eight_calls")

OLD_LIMIT = 3e-3  # fixed, and below what PyTorch's own half precision has of these models
DEEP: list[dict[str, Any]] = [
    {"seed": 3, "vae_channels": (8, 16, 16)},
    {"seed": 11, "vae_channels": (8, 16, 16), "unet_channels": (32, 32), "width_text": 32},
    {"seed": 1, "vae_channels": (8, 16, 16, 32), "unet_channels": (32, 64, 64, 64), "width_text": 32},
]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "few", CLASSES, 6)


def export_half(model: Path, data: Path, artifacts: Path, *more: object) -> Ran:
    asked = ("--precision", "fp16", "--images", 4, "--threads", 1, "--quiet")
    return run_cli("export", "--model", model, "--data", data, "--artifacts", artifacts, *asked, *more)


def certificate_of(artifacts: Path) -> dict[str, Any]:
    (file,) = artifacts.rglob("certificate.json")
    certificate: dict[str, Any] = json.loads(file.read_text())
    return certificate


def worst(certificate: dict[str, Any], component: Component) -> float:
    return max(float(call["relative_l2"]) for call in certificate["components"][component]["parity"])


@pytest.mark.parametrize("shape", [DEEP[0], *(pytest.param(shape, marks=pytest.mark.slow) for shape in DEEP[1:])])
def test_a_sound_export_beyond_the_old_limit_is_not_rejected(tmp_path: Path, few: Path, shape: dict[str, Any]) -> None:
    model = write_model(tmp_path / "model", layers=2, **shape)
    ran = export_half(model, few, tmp_path / "art")
    assert ran.code == 0, ran.err
    certificate = certificate_of(tmp_path / "art")
    assert (certificate["status"], certificate["reasons"]) == ("unverified", [])
    assert OLD_LIMIT < worst(certificate, "vae_encoder") < LIMITS["fp16"].relative_l2 / 5
    assert certificate["half"]["vae_encoder"]["pytorch"] > OLD_LIMIT
    assert certificate["limits"]["half_ratio"] == HALF_RATIO


def test_the_certificate_has_the_half_precision_of_every_network(exported: Path) -> None:
    half = certificate_of(exported)["half"]
    assert set(half) == set(COMPONENTS)
    for component, errors in half.items():
        assert 0 < errors["ours"] <= HALF_RATIO * errors["pytorch"]
        assert (errors["ours_guided"] is None) == (errors["pytorch_guided"] is None) == (component != "unet")
    assert half["unet"]["pytorch"] < half["unet"]["pytorch_guided"]
    assert {component: (e["rows"], e["calls"]) for component, e in half.items()} == {
        "text_encoder": (1, 3),
        "vae_encoder": (HALF_IMAGES, 2),
        "unet": (2 * HALF_IMAGES, 8),
        "vae_decoder": (HALF_IMAGES, 1),
    }


@pytest.mark.slow
def test_what_pytorchs_half_precision_cannot_run_has_the_ceilings(
    tmp_path: Path, tiny_model: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder's first activations are beyond fp16; the export computes those in fp32."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (file,) = (model / "vae").glob("*.safetensors")
    weights = load_file(file)
    for name in ("decoder.conv_in.weight", "decoder.conv_in.bias"):
        weights[name] *= 1e5
    save_file(weights, file, {"format": "pt"})
    ran = export_half(model, few, tmp_path / "art")
    assert ran.code == 0, ran.err
    errors = certificate_of(tmp_path / "art")["half"]["vae_decoder"]
    assert errors["pytorch"] is None
    assert errors["ours"] < OLD_LIMIT
    put_in(monkeypatch, "vae_decoder", permuted_batch)
    assert export_half(model, few, tmp_path / "art", "--certify").code == 1
    assert certificate_of(tmp_path / "art")["reasons"][0].endswith("the limit is 0.1")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, few: Path, eight_calls: None) -> Path:
    """An artifacts directory with the tiny model's fp16 export; not to be changed."""
    artifacts = tmp_path_factory.mktemp("exported")
    ran = export_half(tiny_model, few, artifacts)
    assert ran.code == 0, ran.err
    return artifacts


def put_in(monkeypatch: pytest.MonkeyPatch, component: Component, fault: Fault) -> None:
    """Let what is compared be PyTorch, rounded to fp16, with a fault in one network."""

    @contextmanager
    def open_candidate(job: ExportJob, _: Artifact) -> Iterator[Candidate]:
        yield mutate(open_networks(job.model.path, job.device, torch.float32), component, fault, torch.float16), "it"

    monkeypatch.setattr(export, "open_candidate", open_candidate)


def fp32_for_fp16(runtime: Any, inputs: Any, last: object) -> Any:
    """Passes by the runtime that would round, and says that it is fp16."""
    return runtime._runtime(inputs)


FAULTS: list[tuple[Component, Fault | float]] = [
    ("unet", swapped_halves),
    ("unet", overflow),
    ("text_encoder", 2.0),
    ("vae_decoder", 300.0),
]
MORE_FAULTS: list[tuple[Component, Fault | float]] = [
    ("unet", permuted_batch),
    ("vae_decoder", permuted_batch),
    ("text_encoder", stale_buffer),
    ("unet", stale_buffer),
    ("unet", shifted_timestep),
    ("unet", fp32_for_fp16),
    *((component, overflow) for component in COMPONENTS if component != "unet"),
    *((component, 2.0) for component in COMPONENTS if component != "text_encoder"),
]


@pytest.mark.parametrize(
    ("component", "fault"), [*FAULTS, *(pytest.param(*fault, marks=pytest.mark.slow) for fault in MORE_FAULTS)]
)
def test_a_faulty_one_is_rejected(
    exported: Path,
    tmp_path: Path,
    tiny_model: Path,
    few: Path,
    monkeypatch: pytest.MonkeyPatch,
    component: Component,
    fault: Fault | float,
) -> None:
    """A number is for PyTorch's own half precision with its error times that."""
    put_in(monkeypatch, component, Exaggerated(tiny_model, component, fault) if isinstance(fault, float) else fault)
    ran = export_half(tiny_model, few, Path(shutil.copytree(exported, tmp_path / "art")), "--certify")
    assert ran.code == 1
    certificate = certificate_of(tmp_path / "art")
    assert certificate["status"] == "rejected"
    assert f"{component}: relative L2" in "; ".join(certificate["reasons"])
    if fault == 2.0:
        assert all("PyTorch's own half precision" in reason for reason in certificate["reasons"])
    if fault == 300.0:
        assert "the limit is 0.1" in certificate["reasons"][0]


@pytest.mark.parametrize("fault", [correct, pytest.param(1.0, marks=pytest.mark.slow), 1.5])
def test_a_right_one_is_not(
    exported: Path,
    tmp_path: Path,
    tiny_model: Path,
    few: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault | float,
) -> None:
    """Else the mutants would be rejected for being mutants."""
    put_in(monkeypatch, "unet", Exaggerated(tiny_model, "unet", fault) if isinstance(fault, float) else fault)
    ran = export_half(tiny_model, few, Path(shutil.copytree(exported, tmp_path / "art")), "--certify")
    assert ran.code == 0, ran.err
