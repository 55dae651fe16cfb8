"""The certificate of a machine: all records together, and one table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d4m_fast.certification.request import Request
from d4m_fast.certification.step import Record, Step, failed, recorded
from d4m_fast.measure.calls import NETWORK_OF
from d4m_fast.measure.gpus import gpu_of

FILE = "certify.json"
BASELINES = ("compiled-fp16", "compiled-fp32", "torch-fp32")
"""What images per second are compared with: the first of these that was timed."""


def certificate(request: Request, steps: Sequence[Step], missing: Mapping[str, str]) -> dict[str, Any]:
    """Return all results so far of this machine and these versions; steps of others do not count."""
    records: dict[str, Record] = {}
    for step in steps:
        record = recorded(request.folder, step)
        if record is not None:
            records[step.name] = record
    problems = list(failed(records.values()))
    calls = len(request.workload.schedule.steps)
    return {
        "passed": bool(records) and not problems,
        "complete": len(records) == len(steps),
        "failed": problems,
        "to_do": [step.name for step in steps if step.name not in records],
        "not_here": dict(missing),
        **request.identity,
        "model": Path(request.model.name).name if request.model.revision is None else request.model.name,
        "revision": request.model.revision,
        "calls": calls,
        "seconds": request.config.seconds,
        "engines": engines(records, calls),
        "stages": stages(records, str(request.machine["device"])),
        **builds(records.values()),
        "steps": records,
    }


def engines(records: Mapping[str, Record], calls: int) -> dict[str, dict[str, Any]]:
    """Return a row per engine: agreement, and images per second of each stage at its best batch.

    `generate` is reckoned from the UNet's and the decoder's: `calls` of one and one of the other per image.
    """
    rows: dict[str, dict[str, Any]] = {}
    for step in records:
        if step.startswith(("parity-", "speed-")):
            _, kind, precision, *_ = step.split("-")  # parity-onnx-fp16, speed-onnx-fp16-unet
            name = f"{kind}-{precision}"
            rows[name] = _row(name, records, calls)
    base = baseline(rows)
    for row in rows.values():
        row["ratio"] = None if base is None or row["generate"] is None else row["generate"] / rows[base]["generate"]
    return rows


def baseline(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the engine that the others' images per second are divided by."""
    return next((name for name in BASELINES if name in rows and rows[name]["generate"] is not None), None)


def _row(name: str, records: Mapping[str, Record], calls: int) -> dict[str, Any]:
    parity = records.get(f"parity-{name}")
    agreement = {} if parity is None else parity["figures"]
    stage_figures: dict[str, dict[str, Any]] = {}
    for stage in NETWORK_OF:
        if f"speed-{name}-{stage}" in records:
            stage_figures[stage] = records[f"speed-{name}-{stage}"]["figures"]
    unet = stage_figures.get("unet", {}).get("images_per_second")
    decode = stage_figures.get("decode", {}).get("images_per_second")
    return {
        "passed": all(record["passed"] for step, record in records.items() if f"-{name}" in step),
        "compared": parity is not None,
        "relative_l2": max(agreement["relative_l2"].values()) if agreement else None,
        "psnr_worst": agreement.get("psnr_worst"),
        "stages": stage_figures,
        # Seconds per image: all UNet calls, and one decoding.
        "generate": 1 / (calls / unet + 1 / decode) if unet and decode else None,
    }


def stages(records: Mapping[str, Record], device: str) -> dict[str, list[dict[str, Any]]]:
    """Return each stage's share of the peak that `d4m-fast plan` knows of this GPU, for its `--calibrate`."""
    gpu = gpu_of(device)  # None where its peak is not in the table: no share then
    rows: dict[str, list[dict[str, Any]]] = {}
    for step, record in records.items():
        kind, *names = step.split("-")
        if kind == "speed" and record["passed"] and gpu is not None:
            precision, stage = names[1:3]
            figures, flops = record["figures"], record["figures"]["flops_per_second"]
            row = {
                "batch": figures["batch"],
                "images_per_second": figures["images_per_second"],
                "engine": f"{names[0]}-{precision}",
                "gflops": flops / 1e9,
                "share_of_peak": flops / gpu.flops[precision],
            }
            rows.setdefault(stage, []).append(row)
    return rows


def builds(records: Any) -> dict[str, Any]:
    """Return seconds and peak memory of the costliest engine builds, for `d4m-fast plan --calibrate`."""
    seconds, peak_bytes = [], []
    for record in records:
        if record["figures"].get("build_seconds") is not None:
            seconds.append(record["figures"]["build_seconds"])
            peak_bytes.append(record["figures"]["build_peak_bytes"])
    return {"engine_build_seconds": max(seconds), "engine_build_peak_bytes": max(peak_bytes)} if seconds else {}


def path_of(folder: Path) -> Path:
    return folder / FILE
