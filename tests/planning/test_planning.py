"""`d4m-fast plan`: the counts are those of the literature and of arithmetic, and every figure says how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import refused, run_cli
from torch import nn

from d4m_fast.measure.flops import Shapes, Traced, trace, trace_model
from d4m_fast.measure.gpus import GPUS
from d4m_fast.planning import calculate
from d4m_fast.planning.cost import ASSUMED, PlanRequest, best_batch, image_flops, plan_figures


@pytest.fixture(autouse=True, scope="module")
def _traced_once() -> Iterator[None]:
    """Each model is counted for the first plan of it; the count takes seconds, and no plan changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calculate, "trace_model", cache(trace_model))
        yield


@pytest.fixture(scope="module")
def sd15() -> Shapes:
    return trace_model("sd15")


def request(**changed: Any) -> PlanRequest:
    given = {"images": 1281167, "classes": 1000, "ipc": 50, "calls": 36, "guided_calls": 36, "image_size": 512}
    return PlanRequest(**{**given, "gpu": GPUS["h100"], **changed})


@pytest.mark.parametrize(
    ("part", "millions", "tera"),
    [
        ("unet", 859.52, 0.803),
        ("vae_decoder", 49.49, 2.515),
        ("vae_encoder", 34.16, 1.117),
        ("text_encoder", 123.06, 0.0133),
    ],
)
def test_stable_diffusion_counts(sd15: Shapes, part: str, millions: float, tera: float) -> None:
    """Published parameter totals, and the operations of one sample with attention's products in."""
    assert sd15.networks[part].parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert sd15.networks[part].flops / 1e12 == pytest.approx(tera, rel=0.01)


def test_one_reference_image_of_stable_diffusion(sd15: Shapes) -> None:
    assert image_flops(request(), sd15) / 1e12 == pytest.approx(60.4, rel=0.01)


def test_trace_by_hand() -> None:
    """Two linear layers of four rows: 2 * 4 * (10 * 20 + 20 * 5) operations; input, hidden and its ReLU alive."""
    with torch.device("meta"), torch.inference_mode():
        net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
        traced = trace(net, lambda: net(torch.zeros(4, 10)))
    assert traced == Traced(parameters=325, flops=2400, activations=40 + 80 + 80, largest=80)


def test_attention_is_counted_and_its_scores_not_stored() -> None:
    def attend() -> torch.Tensor:
        query = torch.zeros(1, 2, 64, 8)
        return nn.functional.scaled_dot_product_attention(query, query, query)

    with torch.device("meta"), torch.inference_mode():
        traced = trace(nn.Identity(), attend)
    assert traced == Traced(0, 2 * 2 * 2 * 64 * 64 * 8, 2 * 2 * 64 * 8, 2 * 64 * 8)


def test_hours_by_hand(sd15: Shapes) -> None:
    """3.02 EFLOP are 1.7 hours at half of an H100, and 5.7 at 15%; twice the GPUs halve the wait, not the work."""
    figures = {(f.stage, f.name): f for f in plan_figures(request(gpus=2), sd15, Traced(1, 10, 1, 1), {})}
    made, wall = figures["generation", "GPU-hours"], figures["generation", "hours"]
    assert [made.low, made.high] == pytest.approx([1.70, 5.65], abs=0.01)
    assert (wall.low, wall.high) == (made.low / 2, made.high / 2)
    assert figures["encoding", "all"].low / 1e18 == pytest.approx(1.43, abs=0.01)
    assert figures["students", "all"].low == 3 * 300 * 50_000 * 4 * 10
    assert ASSUMED.source in made.formula
    assert all(f.formula for f in figures.values())


def test_disk_by_hand(sd15: Shapes) -> None:
    asked = request(images=100, classes=5, ipc=2, image_size=10, epochs=7, stored_labels=True)
    figures = {f.name: f.low for f in plan_figures(asked, sd15, Traced(1, 10, 1, 1), {}) if f.stage == "disk"}
    latent = 4 * 64 * 64
    assert figures == {
        "latents": 100 * latent * 2,
        "prototypes": 10 * latent * 4,
        "images, at most": 10 * 300,
        "soft labels": 7 * 10 * 5 * 2,
    }


def test_batches_fit_the_memory_and_32_bit_indices(sd15: Shapes) -> None:
    asked = request()
    assert best_batch(asked, sd15, "vae_decoder", 1) == 16  # 32 x 256 x 512 x 512 is 2^31
    part, batch = sd15.networks["unet"], best_batch(asked, sd15, "unet", 2)
    assert 2 * batch * part.largest < 2**31
    assert 2 * (sd15.parameters + 2 * batch * part.activations) < 0.9 * GPUS["h100"].memory


def plan(*flags: object) -> dict[str, Any]:
    ran = run_cli("plan", "--model", "bundled", "--images", 100, "--classes", 5, "--ipc", 2, *flags, "--json")
    assert ran.code == 0, ran.err
    return {f"{f['stage']} {f['name']}": f for f in ran.json["figures"]} | {"whole": ran.json}


def test_the_command_says_it_is_calculated_and_explains() -> None:
    flags = ("--model", "bundled", "--images", 100, "--classes", 5, "--ipc", 2)
    plain, explained = run_cli("plan", *flags), run_cli("plan", *flags, "--explain")
    assert (plain.code, explained.code) == (0, 0)
    assert "calculated, not measured" in plain.out
    assert "engine build: not measured" in plain.out
    assert "formula" in explained.out and "formula" not in plain.out


def test_guidance_and_steps() -> None:
    assert plan()["generation UNet calls per image"]["low"] == 36
    assert plan("--steps", 10)["generation UNet calls per image"]["low"] == 8
    unet = plan()["unet per sample"]["low"]
    halved = plan()["generation per image"]["low"] - plan("--guidance", 1)["generation per image"]["low"]
    assert halved == 36 * unet


def test_a_dataset_is_counted(photos: Path, tiny_model: Path) -> None:
    ran = run_cli("plan", "--model", tiny_model, "--data", photos, "--ipc", 2, "--json")
    assert (ran.json["request"]["images"], ran.json["request"]["classes"]) == (18, 3)


def test_calibrated_by_a_profile(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    stages = {"unet": [{"share_of_peak": 0.2}, {"share_of_peak": 0.4}], "encode": {"share_of_peak": 0.3}}
    file.write_text(json.dumps({"stages": stages, "engine_build_seconds": 90}))
    found, assumed = plan("--calibrate", file), plan()
    made = found["generation GPU-hours"]
    assert made["low"] == made["high"] == pytest.approx(assumed["generation GPU-hours"]["low"] * 0.5 / 0.4)
    assert "measured, profile.json" in made["formula"]
    assert found["students GPU-hours"] == assumed["students GPU-hours"]
    assert found["whole"]["engine_build"] == {"seconds": 90, "peak_bytes": None}
    assert assumed["whole"]["engine_build"] is None


def test_an_engine_s_own_rows_calibrate_it(tmp_path: Path) -> None:
    """And the decoder's share is the decoder's."""
    file = tmp_path / "profile.json"
    unet = [{"engine": "torch", "share_of_peak": 0.2}, {"engine": "onnx-fp16", "share_of_peak": 0.4}]
    decode = [{**row, "share_of_peak": 0.1} for row in unet]
    file.write_text(json.dumps({"stages": {"unet": unet, "decode": decode}}))
    parts = plan()
    decoder = 10 * parts["vae_decoder per sample"]["low"]
    rest = parts["generation all"]["low"] - decoder
    for engine, share in (("torch", 0.2), ("onnx", 0.4), ("auto", 0.4)):
        found = plan("--calibrate", file, "--engine", engine)["generation GPU-hours"]["low"]
        assert found == pytest.approx((rest / share + decoder / 0.1) / GPUS["h100"].flops["fp16"] / 3600)
    refused(run_cli("plan", "--calibrate", file, "--engine", "tensorrt"), 1, "none of the stages encode, unet")


def test_fp32_has_a_peak_of_its_own() -> None:
    half, single = (plan("--precision", p)["generation GPU-hours"]["low"] for p in ("fp16", "fp32"))
    assert single / half == pytest.approx(989 / 67)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "no "),
        ('{"stages": {}}', "none of the stages"),
        ('{"stages": {"unet": {"share_of_peak": 7}}}', "share_of_peak 7"),
        ('{"stages": {"unet": {"share_of_peak": 0.5}}, "engine_build_seconds": "x"}', "engine_build_seconds"),
    ],
)
def test_a_bad_profile_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.json").write_text(text)
    refused(run_cli("plan", "--calibrate", tmp_path / "p.json"), 1, said)


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    refused(run_cli("plan", "--model", tmp_path / "none"), 1, "no such model directory")
    refused(run_cli("plan", "--model", "bundled", "--images", 10, "--classes", 5, "--ipc", 3), 2, "need at least 15")
    refused(run_cli("plan", "--data", "bundled", "--images", 10), 2, "--data counts")
    refused(run_cli("plan", "--model", "bundled", "--resolution", 33), 1, "multiple of")
    refused(run_cli("plan", "--steps", 1, "--strength", 0.1), 2, "no step at all")


def test_doctor_says_what_runs() -> None:
    ran = run_cli("doctor", "--json")
    assert (ran.code, ran.json["engines"]["torch"]["available"]) == (0, True)
    assert ran.json["libraries"]["torch"].startswith(torch.__version__.split("+")[0])
    assert all(engine["reason"] for engine in ran.json["engines"].values())
    assert "engines:" in run_cli("doctor").out


def test_rows_of_another_precision_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "certify.json"
    rows = [{"engine": "onnx-fp32", "share_of_peak": 0.8}, {"engine": "onnx-fp16", "share_of_peak": 0.4}]
    file.write_text(json.dumps({"stages": {"encode": rows}}))
    for precision, share in (("fp32", "0.8"), ("fp16", "0.4")):
        found = plan("--calibrate", file, "--precision", precision)["encoding GPU-hours"]
        assert f"x {share} to {share}" in found["formula"]
