"""How near a runtime is to fp32 PyTorch on the same inputs, and whether that is near enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from d4m_fast.engine.runtime import Runtime, Tensors, cut
from d4m_fast.engine.signature import SIGNATURES, Component

IDENTICAL_PSNR = 99.0  # dB, written where two images do not differ
HALF_RATIO = 1.5
"""How much worse than PyTorch's own half precision fp16 may be."""
LARGEST_ACTIVATION = 16_000.0
"""A quarter of fp16's range: calibration sees some images, a run sees all."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a precision.

    Attributes:
        least: relative L2 of a network at least; what is nearer than fp16 can be does not run in it.
        guided: on the noise after guidance, which multiplies errors.
    """

    least: float
    relative_l2: float
    guided: float
    psnr: float


LIMITS: Mapping[str, Limits] = MappingProxyType(
    {"fp32": Limits(0.0, 1e-4, 1e-3, 50.0), "fp16": Limits(1e-5, 3e-3, 2e-2, 30.0)}
)


@dataclass(frozen=True, slots=True)
class Parity:
    """The difference of one call of `batch` samples; the worst over the network's outputs.

    `guided_l2` is the relative L2 of the noise after guidance, of calls with both halves of it.
    """

    batch: int
    timestep: int | None
    max_abs: float
    relative_l2: float
    guided_l2: float | None


def compare(
    component: Component,
    reference: Runtime,
    candidate: Runtime,
    calls: Sequence[Tensors],
    batches: Sequence[int],
    guidance: float | None,
) -> list[Parity]:
    """Every recorded call as it was made, and the first and the last at each of `batches`.

    The UNet's recorded calls are guided; at each of `batches` it is called without guidance, too.

    Args:
        guidance: the scale that recorded UNet calls were made for; None leaves it out.
    """
    ends = calls if len(calls) < 2 else (calls[0], calls[-1])
    sized = [resized(component, call, batch) for call in ends for batch in batches]
    if component == "unet":
        sized = [variant for call in sized for variant in (call, unguided(call))]
    guided = guidance if component == "unet" else None
    pairs = [(call, guided) for call in calls] + [(call, None) for call in sized]
    samples = SIGNATURES[component].samples
    return [_parity(samples(call), call, reference(call), candidate(call), scale) for call, scale in pairs]


def unguided(call: Tensors) -> Tensors:
    """A UNet call without its unconditional half."""
    return {**call, "hidden_states": call["hidden_states"][-call["sample"].shape[0] :]}


def few(call: Tensors, images: int) -> Tensors:
    """Some images of a UNet call, with both halves of guidance."""
    return cut(call, SIGNATURES["unet"], torch.arange(images))


def resized(component: Component, call: Tensors, batch: int) -> Tensors:
    """The call with its samples repeated, or cut, to `batch`."""
    signature = SIGNATURES[component]
    return cut(call, signature, torch.arange(batch) % signature.samples(call))


def _parity(batch: int, call: Tensors, expected: Tensors, got: Tensors, guidance: float | None) -> Parity:
    pairs = [(x.cpu().double(), got[name].cpu().double()) for name, x in expected.items()]
    timestep = int(call["timestep"]) if "timestep" in call else None
    return Parity(
        batch,
        timestep,
        _worst(float((y - x).abs().max()) for x, y in pairs),
        _worst(_relative_l2(x, y) for x, y in pairs),
        None
        if guidance is None
        else _worst(_relative_l2(_guided(x, guidance), _guided(y, guidance)) for x, y in pairs),
    )


def _worst(errors: Iterable[float]) -> float:
    """NaN is worse than any number, wherever it stands."""
    return max(errors, key=_or_inf)


def _relative_l2(expected: torch.Tensor, got: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def _guided(noise: torch.Tensor, guidance: float) -> torch.Tensor:
    unconditional, conditional = noise.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def psnr(expected: np.ndarray, got: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio in dB of each of (N, H, W, 3) uint8 images."""
    error = ((expected.astype(np.float64) - got.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return [float(min(x, IDENTICAL_PSNR)) for x in 10 * np.log10(255**2 / error)]


def verdict(
    components: Mapping[Component, Sequence[Parity]], decibels: Sequence[float], images: np.ndarray, limits: Limits
) -> list[str]:
    """Why a set of networks must be rejected; nothing if it need not be."""
    reasons = []
    for name, found in components.items():
        worst = max(found, key=lambda p: _or_inf(p.relative_l2))
        if not worst.relative_l2 <= limits.relative_l2:
            where = f"at batch {worst.batch}" if worst.timestep is None else f"at timestep {worst.timestep}"
            reasons.append(f"{name}: relative L2 {worst.relative_l2:.2g} {where}, the limit is {limits.relative_l2:g}")
        if worst.relative_l2 < limits.least:
            reasons.append(f"{name}: relative L2 {worst.relative_l2:.2g} is fp32's, another precision was asked for")
        guided = max((_or_inf(p.guided_l2) for p in found if p.guided_l2 is not None), default=0.0)
        if not guided <= limits.guided:
            reasons.append(f"{name}: relative L2 {guided:.2g} after guidance, the limit is {limits.guided:g}")
    if not min(decibels) >= limits.psnr:
        reasons.append(f"worst image {min(decibels):.1f} dB, the limit is {limits.psnr:g}")
    if any(image.max() == 0 for image in images):
        reasons.append("a black image")
    return reasons


def half_verdict(ours: float, pytorch: float, largest: Mapping[Component, float]) -> list[str]:
    """Why an fp16 set must be rejected, beyond `verdict`: errors of the UNet, and each network's largest fp16 value."""
    reasons = []
    if not ours <= HALF_RATIO * pytorch:
        reasons.append(f"unet: relative L2 {ours:.2g}, PyTorch's own half precision has {pytorch:.2g}")
    for name, activation in largest.items():
        if not activation < LARGEST_ACTIVATION:
            reasons.append(f"{name}: an fp16 activation of {activation:.0f}, the limit is {LARGEST_ACTIVATION:.0f}")
    return reasons


def limits_to_json(limits: Limits) -> dict[str, float]:
    return asdict(limits)


def _or_inf(value: float) -> float:
    return float("inf") if np.isnan(value) else value


def to_json(found: Iterable[Parity]) -> list[dict[str, Any]]:
    return [asdict(p) for p in found]
