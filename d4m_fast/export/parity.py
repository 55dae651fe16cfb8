"""How near a runtime is to fp32 PyTorch on the same inputs, and whether that is near enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.signature import SIGNATURES, Component

FP32_RELATIVE_L2 = 1e-4
FP32_PSNR = 50.0
IDENTICAL_PSNR = 99.0  # dB, written where two images do not differ


@dataclass(frozen=True, slots=True)
class Parity:
    """The difference of one call; the worst over the network's outputs."""

    batch: int
    timestep: int | None
    max_abs: float
    relative_l2: float


def compare(
    component: Component, reference: Runtime, candidate: Runtime, calls: Sequence[Tensors], batches: Sequence[int]
) -> list[Parity]:
    """Every recorded call as it was made, and the first and the last at each of `batches`."""
    signature = SIGNATURES[component]
    ends = calls if len(calls) < 2 else (calls[0], calls[-1])
    resized = [_resized(component, call, batch) for call in ends for batch in batches]
    return [_parity(signature.rows(call), call, reference(call), candidate(call)) for call in (*calls, *resized)]


def _resized(component: Component, call: Tensors, batch: int) -> Tensors:
    """The call's rows, repeated or cut to `batch`."""
    signature = SIGNATURES[component]
    rows = torch.arange(batch) % signature.rows(call)
    return {name: x[rows] if name in signature.batched else x for name, x in call.items()}


def _parity(batch: int, call: Tensors, expected: Tensors, got: Tensors) -> Parity:
    differences = [(got[name].double() - x.double(), x.double()) for name, x in expected.items()]
    timestep = int(call["timestep"]) if "timestep" in call else None
    return Parity(
        batch,
        timestep,
        max(float(d.abs().max()) for d, _ in differences),
        max(float(d.norm() / x.norm()) for d, x in differences),
    )


def psnr(expected: np.ndarray, got: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio in dB of each of (N, H, W, 3) uint8 images."""
    error = ((expected.astype(np.float64) - got.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return [float(min(x, IDENTICAL_PSNR)) for x in 10 * np.log10(255**2 / error)]


def verdict(components: Mapping[str, Iterable[Parity]], decibels: Sequence[float], images: np.ndarray) -> list[str]:
    """Why a set of fp32 networks must be rejected; nothing if it need not be."""
    reasons = []
    for name, found in components.items():
        worst = max(found, key=lambda p: _or_inf(p.relative_l2))
        if not worst.relative_l2 <= FP32_RELATIVE_L2:
            reasons.append(
                f"{name}: relative L2 {worst.relative_l2:.2g} at batch {worst.batch}, the limit is {FP32_RELATIVE_L2:g}"
            )
    if not min(decibels) >= FP32_PSNR:
        reasons.append(f"worst image {min(decibels):.1f} dB, the limit is {FP32_PSNR:g}")
    if any(image.max() == 0 for image in images):
        reasons.append("a black image")
    return reasons


def _or_inf(value: float) -> float:
    return float("inf") if np.isnan(value) else value


def to_json(found: Iterable[Parity]) -> list[dict[str, Any]]:
    return [asdict(p) for p in found]
