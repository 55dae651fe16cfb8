"""`d4m-fast profile`: one small profile of everything, and what its output is made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from driving import Ran, refused, run_cli
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from d4m_fast.engine.networks import Networks, open_networks

BATCHES = (1, 3)
STAGES = ("encode", "kmeans", "text", "unet", "decode", "write", "distill")


@dataclass(frozen=True)
class Profiled:
    """A profile of the tiny model, its trace and its plot; not to be changed."""

    ran: Ran
    root: Path

    @property
    def stages(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = self.ran.json["stages"]
        return found


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def profile(tiny_model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    def run(*args: object) -> Ran:
        data = ("--model", tiny_model, "--data", photos, "--threads", 1, "--images", 18)
        place = ("--artifacts", tmp_path_factory.mktemp("profile"), "--seconds", 0, "--repeats", 2, "--quiet")
        return run_cli("profile", *data, *place, *args)

    return run


@pytest.fixture(scope="session")
def whole(profile: Run, tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    root = tmp_path_factory.mktemp("whole")
    files = ("--trace", root / "trace.json", "--plot", root / "plot.png", "--artifacts", root / "artifacts")
    ran = profile("--batches", "3,1", "--json", *files)
    assert ran.code == 0, ran.err
    return Profiled(ran, root)


def test_every_stage_engine_and_batch_has_a_row(whole: Profiled) -> None:
    assert tuple(whole.stages) == STAGES
    found = {stage: [(r["engine"], r["batch"]) for r in rows] for stage, rows in whole.stages.items()}
    for stage in ("encode", "text", "unet", "decode"):
        assert found[stage] == [("torch", batch) for batch in BATCHES]
    assert found["write"] == [("host", batch) for batch in BATCHES]
    assert found["kmeans"] == [("host", 6)]
    assert found["distill"] == [("torch", 3)]
    assert whole.ran.err == ""


def test_figures_fit_each_other(whole: Profiled) -> None:
    peak = max(whole.ran.json["peak"].values())
    for stage, rows in whole.stages.items():
        for row in rows:
            latency = row["latency_seconds"]
            assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
            assert row["images_per_second"] == pytest.approx(row["batch"] / latency["p50"])
            assert row["repeats"] == (1 if stage == "distill" else 2)
            assert row["peak_bytes"] > 50e6
            if row["gflops"] is not None:
                assert row["share_of_peak"] == pytest.approx(row["gflops"] / peak)
                assert 0 < row["share_of_peak"] < 1


def counted(call: Callable[[], object]) -> int:
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def oracle(networks: Networks, model: Path) -> dict[str, int]:
    """FLOP of one image, counted by PyTorch on diffusers' networks, attention as plain products.

    The UNet's are diffusers': what both halves of guidance share is credited twice, as if it were computed twice.
    """
    latents, states = torch.zeros(1, 4, 8, 8), torch.zeros(2, 24, 16)
    unet = UNet2DConditionModel.from_pretrained(model / "unet", low_cpu_mem_usage=False)
    return {
        "encode": counted(lambda: networks.vae_encoder(torch.zeros(1, 3, 16, 16))),
        "text": counted(lambda: networks.text_encoder(["a"])),
        "unet": counted(lambda: unet(torch.cat([latents, latents]), torch.tensor(1), states)),
        "decode": counted(lambda: networks.vae_decoder(latents)),
    }


def test_flops_are_those_pytorch_counts(whole: Profiled, tiny_model: Path) -> None:
    each = oracle(open_networks(tiny_model, torch.device("cpu"), torch.float32), tiny_model)
    done = {
        s: [1e9 * r["gflops"] * r["latency_seconds"]["p50"] for r in rows]
        for s, rows in whole.stages.items()
        if rows[0]["gflops"]
    }
    for stage, flop in each.items():
        assert done[stage] == pytest.approx([batch * flop for batch in BATCHES])
    calls = whole.ran.json["unet_calls_per_image"]
    assert calls == 36
    images = 18 * each["encode"] + 3 * (calls * each["unet"] + each["decode"])
    assert done["distill"] == pytest.approx([images + 4 * each["text"]])


def test_the_whole_run_tells_its_stages_and_queues(whole: Profiled) -> None:
    (row,) = whole.stages["distill"]
    assert {"open", "encode", "denoise", "decode", "write"} <= row["seconds"].keys()
    assert isinstance(row["waits"], dict)
    assert "seconds" not in whole.stages["unet"][0]


def test_nothing_stays_but_what_was_asked_for(whole: Profiled) -> None:
    assert sorted(f.name for f in whole.root.iterdir()) == ["artifacts", "plot.png", "trace.json"]
    assert list((whole.root / "artifacts").iterdir()) == []


def test_the_trace_shows_every_call(whole: Profiled) -> None:
    events = json.loads((whole.root / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert names.count("unet torch x3") == 2
    assert names.count("unet torch x3, warm-up") == 1
    assert names.count("peak") == 2
    assert {"denoise", "cluster"} <= set(names)


def test_the_plot_is_a_picture(whole: Profiled) -> None:
    with Image.open(whole.root / "plot.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20


def test_a_plan_takes_the_profile_as_it_is_printed(whole: Profiled, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(whole.ran.out)
    ran = run_cli("plan", "--model", "bundled", "--calibrate", file, "--json")
    assert ran.code == 0, ran.err
    figures = {f["stage"]: f for f in ran.json["figures"] if f["name"] == "GPU-hours"}
    best = max(row["share_of_peak"] for row in whole.stages["unet"])
    assert f"{best:.3g}" in figures["generation"]["formula"]
    assert f"measured, profile.json, on {whole.ran.json['machine']['device']}" in figures["generation"]["formula"]
    assert figures["generation"]["low"] == figures["generation"]["high"]


def test_the_table_says_how_to_read_it(profile: Run) -> None:
    ran = profile("--stages", "unet,text", "--batches", "2")
    assert ran.code == 0
    assert [line.split("│")[1].strip() for line in ran.out.splitlines() if "│" in line] == ["text", "unet"]
    assert "an image takes 36" in ran.out
    assert "matrix product" in ran.out


def test_a_slower_profile_fails(profile: Run, whole: Profiled, tmp_path: Path) -> None:
    """Against itself with rates a thousand times as high, and as low."""
    for factor, code in ((1000, 1), (0.001, 0)):
        older = whole.ran.json
        older["stages"] = {
            "text": [{**r, "images_per_second": factor * r["images_per_second"]} for r in whole.stages["text"]]
        }
        (tmp_path / "older.json").write_text(json.dumps(older))
        ran = profile("--stages", "text", "--batches", "3", "--json", "--against", tmp_path / "older.json")
        assert ran.code == code, ran.err
        assert [c["batch"] for c in ran.json["against"]["slower"]] == [3] * code
        assert ("slower: text torch x3" in ran.err) == bool(code)
        assert "missing now: text torch x1" in ran.err
        assert "1 rows compared" in ran.err


def test_bad_options_are_refused(profile: Run, tmp_path: Path) -> None:
    refused(profile("--batches", "1,x"), 2, "--batches: 'x'")
    refused(profile("--batches", "0"), 2, "--batches must be at least 1")
    refused(profile("--batches", ""), 2, "--batches: none given")
    refused(profile("--stages", "unet,vae"), 2, "'vae' is none of encode")
    refused(profile("--engine", "torch,tvm"), 2, "'tvm' is none of auto")
    refused(profile("--repeats", 0), 2, "--repeats must be 1 to 1000000")
    refused(profile("--seconds", -1), 2, "--seconds")
    refused(profile("--engine", "torch,onnx"), 1, "run d4m-fast export first")
    refused(profile("--against", tmp_path / "none.json"), 1, "cannot be read as a profile")
    (tmp_path / "other.json").write_text('{"stages": {"unet": [{"engine": "torch", "batch": 1}]}}')
    refused(profile("--against", tmp_path / "other.json"), 1, "cannot be read as a profile")


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    profile: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ran = profile("--plot", tmp_path / "plot.png", "--model", tmp_path / "none")
    refused(ran, 6, "pip install 'd4m-fast[plot]'")
