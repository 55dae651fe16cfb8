"""A profile's measured shares of peak in place of assumed ones."""

from __future__ import annotations

from collections.abc import Iterator
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
    """What building the engine took: seconds, and bytes of host memory at most where that was measured."""

    seconds: float
    peak_bytes: float | None


def read_profile(file: Path, gpu: Gpu, engine: str, precision: str) -> tuple[dict[str, Share], Build | None]:
    """Shares of `gpu`'s peak in a precision by stage, and what the engine's build took if the file says so.

    The file is what `d4m-fast profile --json` prints, or the certify.json of `d4m-fast certify`: `{"stages": {stage:
    {"share_of_peak": 0..1, "engine", "batch", "images_per_second", "peak_bytes", "gflops"}}, "machine": {"device"}}`;
    a stage may also be a list of such records, of which the best of the engine counts, of any where it is "auto".
    `"engine_build_seconds"` and
    `"engine_build_peak_bytes"` may stand beside `"stages"`. Of a profile made on such a GPU GFLOP/s count, over the
    maker's peak; elsewhere the share of the peak that was measured there is carried over.

    Raises:
        DataError: not such a file.
    """
    value = _load(file)
    device = _device(value)
    own = gpu.name.split()[0] in device
    measured_in = value.get("precision", precision)
    if measured_in not in tuple(gpu.flops):
        raise DataError(f"--calibrate {file}: precision is {measured_in!r}, not one of {', '.join(gpu.flops)}")
    peak = gpu.flops[measured_in] if own else None
    source = f"measured, {file.name}" if own or not device else f"measured, {file.name}, on {device}"
    shares = {}
    for stage in STAGES:
        records = [record for record in _records(value["stages"].get(stage)) if _is_of(record, engine, precision)]
        measured = [_share(file, stage, record, peak) for record in records]
        if measured:
            best = max(measured)
            shares[stage] = Share(best, best, source)
    if not shares:
        of = "" if engine == "auto" else f" of --engine {engine}"
        raise DataError(
            f"{file}: none of the stages {', '.join(STAGES)}{of} in it; make it with d4m-fast profile --json"
        )
    return shares, _build(file, value)


def _load(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"--calibrate {file}: cannot be read as a profile ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("stages"), dict):
        raise DataError(f'--calibrate {file}: no "stages" in it; make it with d4m-fast profile --json')
    return value


def _records(found: Any) -> Iterator[Any]:
    if found is not None:
        yield from found if isinstance(found, list) else (found,)


def _is_of(record: Any, engine: str, precision: str) -> bool:
    """A certificate's engines have their precision in the name, onnx-fp16; a profile has one precision for all."""
    name, _, made_in = str(record.get("engine", engine) if isinstance(record, dict) else engine).partition("-")
    return engine in ("auto", name) and made_in in ("", precision)


def _device(value: dict[str, Any]) -> str:
    machine = value.get("machine")
    return str(machine.get("device", "")) if isinstance(machine, dict) else ""


def _share(file: Path, stage: str, record: Any, peak: float | None) -> float:
    """Of a peak in FLOP/s, or of the profile's own."""
    share = record.get("share_of_peak") if isinstance(record, dict) else None
    if peak is not None and isinstance(share, int | float):
        gflops = record.get("gflops")
        share = 1e9 * gflops / peak if isinstance(gflops, int | float) else None
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise DataError(f"--calibrate {file}: stage {stage} has share_of_peak {share!r}, not a number in (0, 1]")
    return float(share)


def _build(file: Path, value: dict[str, Any]) -> Build | None:
    seconds, peak = (_number(file, f"engine_build_{name}", value) for name in ("seconds", "peak_bytes"))
    return None if seconds is None else Build(seconds, peak)


def _number(file: Path, name: str, values: dict[str, Any]) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or value < 0:
        raise DataError(f"--calibrate {file}: {name} is {value!r}, not a number")
    return float(value)
