"""Measured shares of peak, from a profile, in place of assumed ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4m_fast.errors import DataError
from d4m_fast.measure.gpus import Gpu
from d4m_fast.planning.cost import Share
from d4m_fast.storage.state import read_json

STAGES = ("encode", "unet", "decode", "students")


@dataclass(frozen=True, slots=True)
class Build:
    """Costs of building the engine: seconds, and bytes of host memory at most where that was measured."""

    seconds: float
    peak_bytes: float | None


def read_profile(file: Path, gpu: Gpu, engine: str, precision: str) -> tuple[dict[str, Share], Build | None]:
    """Read shares of `gpu`'s peak in a precision by stage, and what the engine's build took if the file says so.

    The file is what `d4m-fast profile --json` prints, or the certify.json of `d4m-fast certify`: `{"stages": {stage:
    {"share_of_peak": 0..1, "engine", "batch", "images_per_second", "peak_bytes", "gflops"}}, "machine": {"device"}}`;
    a stage may also be a list of such records, of which the best of the engine counts, of any where it is "auto".
    `"engine_build_seconds"` and `"engine_build_peak_bytes"` may stand beside `"stages"`. Of a profile made on such a
    GPU GFLOP/s count, over the maker's peak; elsewhere the share of the peak that was measured there is carried over.

    Raises:
        DataError: not such a file.
    """
    profile = _load(file)
    machine = profile.get("machine")
    device = str(machine.get("device", "")) if isinstance(machine, dict) else ""
    same_gpu = gpu.name.split()[0] in device
    measured_in = profile.get("precision", precision)
    if measured_in not in tuple(gpu.flops):
        raise DataError(f"--calibrate {file}: precision is {measured_in!r}, not one of {', '.join(gpu.flops)}")
    peak = gpu.flops[measured_in] if same_gpu else None
    source = f"measured, {file.name}" if same_gpu or not device else f"measured, {file.name}, on {device}"
    shares = {}
    for stage in STAGES:
        records = _records_of(engine, precision, profile["stages"].get(stage))
        measured_shares = [_share(file, stage, record, peak) for record in records]
        if measured_shares:
            best = max(measured_shares)
            shares[stage] = Share(best, best, source)
    if not shares:
        of = "" if engine == "auto" else f" of --engine {engine}"
        raise DataError(
            f"{file}: none of the stages {', '.join(STAGES)}{of} in it; make it with d4m-fast profile --json"
        )
    seconds = _number(file, "engine_build_seconds", profile)
    peak_bytes = _number(file, "engine_build_peak_bytes", profile)
    return shares, None if seconds is None else Build(seconds, peak_bytes)


def _load(file: Path) -> dict[str, Any]:
    try:
        profile = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"--calibrate {file}: cannot be read as a profile ({error})") from error
    if not isinstance(profile, dict) or not isinstance(profile.get("stages"), dict):
        raise DataError(f'--calibrate {file}: no "stages" in it; make it with d4m-fast profile --json')
    return profile


def _records_of(engine: str, precision: str, stage: Any) -> list[Any]:
    """Return a stage's records of an engine and a precision; those that name none are of any."""
    if stage is None:
        return []
    records = []
    for record in stage if isinstance(stage, list) else [stage]:
        recorded_engine = record.get("engine", engine) if isinstance(record, dict) else engine
        # A certificate has the precision in the engine's name: onnx-fp16.
        name, _, of_precision = str(recorded_engine).partition("-")
        if engine in ("auto", name) and of_precision in ("", precision):
            records.append(record)
    return records


def _share(file: Path, stage: str, record: Any, peak: float | None) -> float:
    """Return the share of a peak in FLOP/s, or of the profile's own."""
    share = record.get("share_of_peak") if isinstance(record, dict) else None
    if peak is not None and isinstance(share, int | float):
        # The profile's share is of the peak it measured; on the same GPU, the maker's peak is the same for all.
        gflops = record.get("gflops")
        share = 1e9 * gflops / peak if isinstance(gflops, int | float) else None
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise DataError(f"--calibrate {file}: stage {stage} has share_of_peak {share!r}, not a number in (0, 1]")
    return float(share)


def _number(file: Path, name: str, values: dict[str, Any]) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or value < 0:
        raise DataError(f"--calibrate {file}: {name} is {value!r}, not a number")
    return float(value)
