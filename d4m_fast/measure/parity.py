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
HALF_RATIO = 1.75
"""How much worse than PyTorch's own half precision fp16 may be.

An exported graph rounds after every operator, PyTorch's kernels after some. On two rows sound exports have 0.8 to 1.3
times its error, the bundled VAE encoder 1.49, of which half is chance: 1.2 to 1.3 on 16. Below 2, so that an error
twice as large is found.
"""
LARGEST_ACTIVATION = 16_000.0
"""A quarter of fp16's range: calibration sees some images, a run sees all."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a precision.

    Attributes:
        least: relative L2 of a network at least; what is nearer than fp16 can be does not run in it.
        guided: on the noise after guidance, which multiplies errors.
        half_ratio: times the error of PyTorch's own half precision; None where fp32 was asked for.
    """

    least: float
    relative_l2: float
    guided: float
    psnr: float
    half_ratio: float | None = None


# What half precision loses depends on weights and depth, so that fp16's own limit is a ratio. Its other two are
# ceilings, which nothing sound comes near: seven times the largest errors of the bundled model and of random weights
# of two to four levels and one to three layers a block (1.3e-2, a VAE encoder's; after guidance 1.4e-2, the bundled
# model's). They are for what PyTorch's own half precision cannot run.
LIMITS: Mapping[str, Limits] = MappingProxyType(
    {"fp32": Limits(0.0, 1e-4, 1e-3, 50.0), "fp16": Limits(1e-5, 1e-1, 1e-1, 30.0, HALF_RATIO)}
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


@dataclass(frozen=True, slots=True)
class HalfErrors:
    """A network's worst relative L2 in fp16, beside that of PyTorch's own half precision on the same calls.

    Attributes:
        pytorch: None where PyTorch's half precision is not finite, so that a ratio to it says nothing.
        ours_guided, pytorch_guided: of the noise after guidance; None of other networks than the UNet, too.
        rows: of the largest call.
    """

    ours: float
    pytorch: float | None
    ours_guided: float | None
    pytorch_guided: float | None
    rows: int
    calls: int


def compare(
    component: Component,
    reference: Runtime,
    candidate: Runtime,
    calls: Sequence[Tensors],
    batches: Sequence[int],
    guidance: float | None,
) -> list[Parity]:
    """Every recorded call as it was made, and the first and the last at each of `batches`.

    The UNet's recorded calls are guided, but of one that is told the scale; at each of `batches` it is called without
    guidance, too.

    Args:
        guidance: the scale that recorded UNet calls were made for; None leaves it out.
    """
    ends = calls if len(calls) < 2 else (calls[0], calls[-1])
    sized = [resized(component, call, batch) for call in ends for batch in batches]
    if component == "unet":
        sized = [variant for call in sized for variant in (call, unguided(call))]
    samples, rows = SIGNATURES[component].samples, SIGNATURES[component].rows
    pairs = [(call, guidance if rows(call) > samples(call) else None) for call in calls]
    pairs += [(call, None) for call in sized]
    return [_parity(samples(call), call, reference(call), candidate(call), scale) for call, scale in pairs]


def unguided(call: Tensors) -> Tensors:
    """A UNet call without its unconditional half."""
    return {**call, "hidden_states": call["hidden_states"][-call["sample"].shape[0] :]}


def few(component: Component, call: Tensors, images: int) -> Tensors:
    """The first images of a call, of the UNet's with both halves of guidance."""
    signature = SIGNATURES[component]
    return cut(call, signature, torch.arange(min(images, signature.samples(call))))


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
        largest(float((y - x).abs().max()) for x, y in pairs),
        largest(_relative_l2(x, y) for x, y in pairs),
        None
        if guidance is None
        else largest(_relative_l2(_guided(x, guidance), _guided(y, guidance)) for x, y in pairs),
    )


def largest(errors: Iterable[float]) -> float:
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


def half_errors(ours: Sequence[Parity], pytorch: Sequence[Parity], rows: int) -> HalfErrors:
    """What two comparisons with the same reference, on the same calls, come to."""
    guided, half_guided = _guided_errors(ours), _guided_errors(pytorch)
    return HalfErrors(
        largest(p.relative_l2 for p in ours),
        _finite(largest(p.relative_l2 for p in pytorch)),
        largest(guided) if guided else None,
        _finite(largest(half_guided)) if half_guided else None,
        rows,
        len(ours),
    )


def _guided_errors(comparison: Sequence[Parity]) -> list[float]:
    return [p.guided_l2 for p in comparison if p.guided_l2 is not None]


def _finite(error: float) -> float | None:
    return error if np.isfinite(error) else None


def half_verdict(errors: Mapping[Component, HalfErrors]) -> list[str]:
    """Why an fp16 set must be rejected, beyond `verdict`: networks with more than their share of error."""
    reasons = []
    for name, e in errors.items():
        for where, ours, pytorch in (("", e.ours, e.pytorch), (" after guidance", e.ours_guided, e.pytorch_guided)):
            if ours is not None and pytorch is not None and not ours <= HALF_RATIO * pytorch:
                limit = f"{HALF_RATIO:g} times PyTorch's own half precision's {pytorch:.2g}"
                reasons.append(f"{name}: relative L2 {ours:.2g}{where}, the limit is {limit}")
    return reasons


def activation_verdict(activations: Mapping[Component, float]) -> list[str]:
    """Why an fp16 set must be rejected: networks whose largest fp16 value in calibration is near fp16's range."""
    return [
        f"{name}: an fp16 activation of {activation:.0f}, the limit is {LARGEST_ACTIVATION:.0f}"
        for name, activation in activations.items()
        if not activation < LARGEST_ACTIVATION
    ]


def limits_to_json(limits: Limits) -> dict[str, float | None]:
    return asdict(limits)


def _or_inf(value: float) -> float:
    return float("inf") if np.isnan(value) else value


def to_json(found: Iterable[Parity]) -> list[dict[str, Any]]:
    return [asdict(p) for p in found]
