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
    """What has been found so far, of this machine and these versions; steps of others do not count."""
    found = {step.name: record for step in steps if (record := recorded(request.folder, step)) is not None}
    problems = list(failed(found.values()))
    return {
        "passed": bool(found) and not problems,
        "complete": len(found) == len(steps),
        "failed": problems,
        "to_do": [step.name for step in steps if step.name not in found],
        "not_here": dict(missing),
        **request.identity,
        "model": Path(request.model.name).name if request.model.revision is None else request.model.name,
        "revision": request.model.revision,
        "calls": len(request.schedule.steps),
        "seconds": request.config.seconds,
        "engines": engines(found, len(request.schedule.steps)),
        "stages": stages(found, str(request.machine["device"])),
        **builds(found.values()),
        "steps": found,
    }


def engines(found: Mapping[str, Record], calls: int) -> dict[str, dict[str, Any]]:
    """A row per engine: agreement, and images per second of each stage at its best batch.

    `generate` is reckoned from the UNet's and the decoder's: `calls` of one and one of the other per image.
    """
    own = (name.split("-") for name in found if name.startswith(("parity-", "speed-")))
    names = dict.fromkeys(f"{kind}-{precision}" for _, kind, precision, *_ in own)
    rows = {name: _row(name, found, calls) for name in names}
    base = baseline(rows)
    for row in rows.values():
        row["ratio"] = None if base is None or row["generate"] is None else row["generate"] / rows[base]["generate"]
    return rows


def baseline(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The engine that the others' images per second are divided by."""
    return next((name for name in BASELINES if name in rows and rows[name]["generate"] is not None), None)


def _row(name: str, found: Mapping[str, Record], calls: int) -> dict[str, Any]:
    parity = found.get(f"parity-{name}")
    agreed = {} if parity is None else parity["figures"]
    timed = {s: found[f"speed-{name}-{s}"]["figures"] for s in NETWORK_OF if f"speed-{name}-{s}" in found}
    rates = {s: figures.get("images_per_second") for s, figures in timed.items()}
    unet, decode = rates.get("unet"), rates.get("decode")
    own = [record for step, record in found.items() if f"-{name}" in step]
    return {
        "passed": all(record["passed"] for record in own),
        "compared": parity is not None,
        "relative_l2": max(agreed["relative_l2"].values()) if agreed else None,
        "psnr_worst": agreed.get("psnr_worst"),
        "stages": timed,
        "generate": 1 / (calls / unet + 1 / decode) if unet and decode else None,
    }


def stages(found: Mapping[str, Record], device: str) -> dict[str, list[dict[str, Any]]]:
    """For `d4m-fast plan --calibrate`: each stage's share of the peak that plan knows of this GPU, if it knows one."""
    gpu = gpu_of(device)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, record in found.items():
        kind, *rest = name.split("-")
        if kind == "speed" and record["passed"] and gpu is not None:
            figures, engine = record["figures"], "-".join(rest[:2])
            row = {name: figures[name] for name in ("batch", "images_per_second")}
            flops = figures["flops_per_second"]
            row |= {"engine": engine, "gflops": flops / 1e9, "share_of_peak": flops / gpu.flops[rest[1]]}
            rows.setdefault(rest[2], []).append(row)
    return rows


def builds(records: Any) -> dict[str, Any]:
    """For `d4m-fast plan --calibrate`: seconds and peak memory of the longest and of the largest engine build."""
    built = [r["figures"] for r in records if r["figures"].get("build_seconds") is not None]
    if not built:
        return {}
    return {
        "engine_build_seconds": max(figures["build_seconds"] for figures in built),
        "engine_build_peak_bytes": max(figures["build_peak_bytes"] for figures in built),
    }


def path_of(folder: Path) -> Path:
    return folder / FILE
