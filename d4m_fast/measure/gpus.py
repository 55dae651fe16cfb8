"""Peaks of GPUs, by their makers' data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peaks of a GPU.

    Attributes:
        flops: FLOP/s by precision: dense fp16 with tensor cores, and fp32 without them.
        memory: bytes.
        source: where these are from.
    """

    name: str
    flops: Mapping[str, float]
    memory: int
    source: str


DRIVER_NAMES = {"H100 80GB HBM3": "h100", "H200": "h200", "A100-SXM4-80GB": "a100", "L40S": "l40s"}
"""Parts of the drivers' names for exactly these; other variants have other peaks."""


def gpu_of(device: str) -> Gpu | None:
    """Return the GPU that a driver calls so; None if its peak is not in the table."""
    return next((GPUS[gpu] for name, gpu in DRIVER_NAMES.items() if name in device), None)


def _gpu(name: str, half: float, single: float, gigabytes: int, source: str) -> Gpu:
    return Gpu(name, {"fp16": half * 1e12, "fp32": single * 1e12}, gigabytes * 10**9, source)


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "h100": _gpu("H100 SXM", 989, 67, 80, "NVIDIA H100 data sheet"),
        "h200": _gpu("H200 SXM", 989, 67, 141, "NVIDIA H200 data sheet"),
        "a100": _gpu("A100 SXM", 312, 19.5, 80, "NVIDIA A100 80GB data sheet"),
        "l40s": _gpu("L40S", 362, 91.6, 48, "NVIDIA L40S data sheet"),
    }
)
