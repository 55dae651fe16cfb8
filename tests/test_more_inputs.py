"""Networks that take more than the usual inputs (a mask of the padding, the guidance scale), through every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import CLASSES, Ran, refused, run_cli, write_photos
from models import write_model


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "few", CLASSES, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As LCM's, told the guidance scale; its text encoder masks the padding."""
    path = tmp_path_factory.mktemp("model")
    return write_model(path, unet={"time_cond_proj_dim": 16}, text={"use_attention_mask": True})


def test_distill_runs_the_unet_on_one_row_per_image(model: Path, distill: Callable[..., Ran]) -> None:
    ran = distill("--model", model)
    assert ran.code == 0, ran.err
    assert "3 UNet calls per image, 0 of them guided" in ran.err
    refused(distill("--model", model, "--guidance-interval", "0.2:0.6"), 2, "--guidance-interval", "time_cond_proj_dim")


def test_the_guidance_scale_reaches_the_unet(model: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    images = []
    for guidance in (2, 8):
        run = tmp_path / f"{guidance}"
        assert distill("--model", model, "--guidance", guidance, "--out", run).code == 0
        images.append((run / "images" / "apple" / "00000.png").read_bytes())
    assert images[0] != images[1]


def test_certify_compares_pytorch_and_says_what_is_left_out(model: Path, few: Path, tmp_path: Path) -> None:
    asked = ("--images", 2, "--seconds", 0.05, "--batches", "1,2", "--threads", 1, "--quiet")
    places = ("--out", tmp_path / "out", "--artifacts", tmp_path / "art")
    ran = run_cli("certify", "--model", model, "--data", few, *asked, *places)
    assert ran.code == 0, (ran.out, ran.err)
    report = json.loads((tmp_path / "out" / "certify.json").read_text())
    assert set(report["engines"]) == {"torch-fp32"}
    assert "time_cond_proj_dim" in json.dumps(report)


def test_profile_and_plan_count_one_row_per_image(model: Path, few: Path, tmp_path: Path) -> None:
    asked = ("--stages", "unet", "--batches", 2, "--seconds", 0.01, "--json", "--quiet")
    ran = run_cli("profile", "--model", model, "--data", few, "--artifacts", tmp_path / "art", *asked)
    assert ran.code == 0, ran.err
    planned = run_cli("plan", "--model", model, "--images", 18, "--classes", 3, "--ipc", 2, "--json")
    assert planned.code == 0, planned.err
    samples = [f for f in planned.json["figures"] if f["name"] == "UNet samples per image"]
    calls = [f for f in planned.json["figures"] if f["name"] == "UNet calls per image"]
    assert samples[0]["low"] == calls[0]["low"]
