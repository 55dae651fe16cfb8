"""Certificates as tables, and as calibrations of `plan`; of made-up figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from driving import refused, run_cli

from d4m_fast.certification import certificate as report
from d4m_fast.certification.render import BEGIN, END, insert, markdown
from d4m_fast.measure.gpus import GPUS, gpu_of
from d4m_fast.storage.state import MACHINE, write_state

H100 = "NVIDIA H100 80GB HBM3 (sm90)"
CALLS = 36


def speed(rate: float, batch: int, **more: Any) -> dict[str, Any]:
    figures = {"images_per_second": rate, "batch": batch, "busy_share": 0.97, "flops_per_second": rate * 1e12}
    return record(True, {**figures, **more})


def record(passed: bool, figures: dict[str, Any], problem: str = "") -> dict[str, Any]:
    check = {"name": "within the limits", "passed": passed, "detail": problem}
    return {"passed": passed, "checks": [check], "figures": figures}


def steps() -> dict[str, dict[str, Any]]:
    agreed = {"relative_l2": {"unet": 2e-3, "vae_decoder": 1e-3}, "psnr_worst": 41.26}
    built = {"build_seconds": 90.0, "build_peak_bytes": 12 * 10**9}
    return {
        "parity-compiled-fp16": record(True, agreed),
        "speed-compiled-fp16-unet": speed(100.0, 16),
        "speed-compiled-fp16-decode": speed(50.0, 8),
        "export-tensorrt-fp16": record(True, built),
        "parity-tensorrt-fp16": record(False, agreed, "unet: relative L2 0.1"),
        "speed-tensorrt-fp16-encode": speed(300.0, 32, watts={"min": 1, "mean": 649.6, "max": 700}),
        "speed-tensorrt-fp16-unet": speed(200.0, 32),
        "speed-tensorrt-fp16-decode": speed(100.0, 8),
        "parity-onnx-fp16": record(True, agreed),
        "speed-torch-fp16-unet": speed(1234.5, 16, flops_per_second=1e12),
    }


def certificate(seconds: float = 60.0, **changed: Any) -> dict[str, Any]:
    found = steps()
    return {
        "machine": {"device": H100, "driver": "580.1", "processor": "Some CPU", "threads": 8},
        "versions": {"torch": "2.14"},
        "model": "a/b",
        "revision": "c0ffee",
        "model_sha256": "0123456789abcdef",
        "resolution": 512,
        "calls": CALLS,
        "seconds": seconds,
        "failed": [f"{name}: unet" for name, r in found.items() if not r["passed"]],
        "to_do": ["kernels"],
        "not_here": {"onnx-fp32": "not installed"},
        "engines": report.engines(found, CALLS),
        "stages": report.stages(found, H100),
        **report.builds(found.values()),
        "steps": found,
        **changed,
    }


def cells(text: str, engine: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {engine} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_generation_is_reckoned_from_its_stages() -> None:
    rows = report.engines(steps(), CALLS)
    assert rows["compiled-fp16"]["generate"] == pytest.approx(1 / (36 / 100 + 1 / 50))
    assert rows["tensorrt-fp16"]["ratio"] == pytest.approx(2)
    assert (rows["compiled-fp16"]["ratio"], report.baseline(rows)) == (1, "compiled-fp16")
    assert (rows["torch-fp16"]["generate"], rows["torch-fp16"]["ratio"], rows["torch-fp16"]["compared"]) == (
        None,
        None,
        False,
    )
    assert [name for name, row in rows.items() if not row["passed"]] == ["tensorrt-fp16"]


def test_the_table() -> None:
    text = markdown(certificate())
    assert text.startswith(f"{BEGIN}\n{H100}, driver 580.1; model a/b@c0ffee (0123456789ab) at 512 pixels; torch 2.14.")
    assert text.endswith(f"\n{END}")
    stage = "300 (32, 97 % busy, 650 W)"
    agreed = ["2.0e-03", "41.3"]
    made = ["200 (32, 97 % busy)", "100 (8, 97 % busy)", "5.26", "2.00"]
    assert cells(text, "TensorRT fp16") == ["TensorRT fp16", "FAILED", *agreed, stage, *made]
    assert cells(text, "ONNX Runtime fp16")[1:] == ["certified", *agreed, *["not run"] * 3, "", ""]
    assert cells(text, "PyTorch fp16")[1:6] == ["not compared", "", "", "not run", "1,234 (16, 97 % busy)"]
    assert "Ratio: against torch.compile fp16, at its own best batch" in text
    assert "Failed: parity-tensorrt-fp16: unet." in text
    assert "Not run: kernels, onnx-fp32 (not installed)." in text
    assert "each over 60 s;" in text


def test_a_short_steady_state_is_said() -> None:
    assert "each over 5 s (shorter than the 60 s of a full certificate)" in markdown(certificate(5.0))


def test_a_cpu_is_named_by_its_processor() -> None:
    machine = {"device": "cpu", "driver": None, "processor": "Some CPU", "threads": 2}
    text = markdown(certificate(machine=machine, model="bundled", revision=None))
    assert "Some CPU, 2 threads; model bundled (0123456789ab) at 512 pixels" in text


def test_rendered_into_a_file(tmp_path: Path) -> None:
    found, readme = tmp_path / "certify.json", tmp_path / "README.md"
    write_state(found, MACHINE, certificate())
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert run_cli("certify", "--render", found).out == markdown(certificate()) + "\n"
    for _ in range(2):
        assert run_cli("certify", "--render", found, "--into", readme).code == 0
        assert readme.read_text() == f"before\n{markdown(certificate())}\nafter\n"


@pytest.mark.parametrize("text", ["", f"{END}{BEGIN}", BEGIN, f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_file_without_the_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    found, readme = tmp_path / "certify.json", tmp_path / "README.md"
    write_state(found, MACHINE, certificate())
    readme.write_text(text)
    refused(run_cli("certify", "--render", found, "--into", readme), 1, "README.md", BEGIN)
    assert readme.read_text() == text
    refused(run_cli("certify", "--render", found, "--into", tmp_path / "none"), 1, "cannot be read")


def test_what_is_no_certificate_is_refused(tmp_path: Path) -> None:
    refused(run_cli("certify", "--render", tmp_path / "none"), 1, "not there")
    for text in ("[]", "{", "", json.dumps(certificate())):
        (tmp_path / "x.json").write_text(text)
        refused(run_cli("certify", "--render", tmp_path / "x.json"), 5, "damaged")


def test_a_certificate_calibrates_plan(tmp_path: Path) -> None:
    """The UNet's share is that of the best engine that passed; the rest stays assumed."""
    file = tmp_path / "certify.json"
    file.write_text(json.dumps(certificate()))
    args = ("plan", "--model", "bundled", "--images", 100, "--classes", 5, "--ipc", 2, "--json")
    found = run_cli(*args, "--calibrate", file).json
    (made,) = [f for f in found["figures"] if (f["stage"], f["name"]) == ("generation", "GPU-hours")]
    share = 200e12 / GPUS["h100"].flops["fp16"]
    assert f"x {share:.3g} to {share:.3g}, measured, certify.json" in made["formula"]
    assert found["engine_build"] == {"seconds": 90, "peak_bytes": 12 * 10**9}
    assert "engine build: 90 s, 12.0 GB of host memory" in run_cli(*args[:-1], "--calibrate", file).out


@pytest.mark.parametrize(
    ("device", "gpu"),
    [(H100, "h100"), ("NVIDIA H100 PCIe (sm90)", None), ("NVIDIA A100-SXM4-80GB (sm80)", "a100"), ("cpu", None)],
)
def test_only_cards_whose_peak_is_known_are_shared_by(device: str, gpu: str | None) -> None:
    assert gpu_of(device) == (None if gpu is None else GPUS[gpu])
    assert bool(report.stages(steps(), device)) == (gpu is not None)


def test_insert_keeps_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "x.md"
    file.write_text(f"ä {BEGIN} {END} ö", encoding="utf-8")
    insert(f"{BEGIN}new{END}", file)
    assert file.read_text(encoding="utf-8") == f"ä {BEGIN}new{END} ö"
