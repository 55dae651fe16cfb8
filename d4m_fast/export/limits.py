"""Limits on the difference of exported networks from fp32 PyTorch, and the verdict on a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from d4m_fast.engine.signature import Component
from d4m_fast.measure.parity import HalfErrors, Parity, nan_as_infinity

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
    """Largest errors that a set in one precision may have.

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


def verdict(
    parities: Mapping[Component, Sequence[Parity]], decibels: Sequence[float], images: np.ndarray, limits: Limits
) -> list[str]:
    """Return why a set of networks must be rejected; nothing if it need not be."""
    reasons = []
    for component, calls in parities.items():
        reasons += _network_verdict(component, calls, limits)
    if not min(decibels) >= limits.psnr:
        reasons.append(f"worst image {min(decibels):.1f} dB, the limit is {limits.psnr:g}")
    if any(image.max() == 0 for image in images):
        reasons.append("a black image")
    return reasons


def _network_verdict(component: Component, calls: Sequence[Parity], limits: Limits) -> list[str]:
    reasons = []
    worst = max(calls, key=lambda call: nan_as_infinity(call.relative_l2))
    # `not <=` instead of `>`, here and below: NaN fails every comparison, and must be rejected.
    if not worst.relative_l2 <= limits.relative_l2:
        where = f"at batch {worst.batch}" if worst.timestep is None else f"at timestep {worst.timestep}"
        reasons.append(f"{component}: relative L2 {worst.relative_l2:.2g} {where}, the limit is {limits.relative_l2:g}")
    if worst.relative_l2 < limits.least:
        reasons.append(f"{component}: relative L2 {worst.relative_l2:.2g} is fp32's, another precision was asked for")
    guided = max((nan_as_infinity(call.guided_l2) for call in calls if call.guided_l2 is not None), default=0.0)
    if not guided <= limits.guided:
        reasons.append(f"{component}: relative L2 {guided:.2g} after guidance, the limit is {limits.guided:g}")
    return reasons


def half_verdict(errors: Mapping[Component, HalfErrors]) -> list[str]:
    """Return why an fp16 set must be rejected, beyond `verdict`: networks with more than their share of error."""
    reasons = []
    for component, e in errors.items():
        for where, ours, pytorch in (("", e.ours, e.pytorch), (" after guidance", e.ours_guided, e.pytorch_guided)):
            if ours is not None and pytorch is not None and not ours <= HALF_RATIO * pytorch:
                limit = f"{HALF_RATIO:g} times PyTorch's own half precision's {pytorch:.2g}"
                reasons.append(f"{component}: relative L2 {ours:.2g}{where}, the limit is {limit}")
    return reasons


def activation_verdict(activations: Mapping[Component, float]) -> list[str]:
    """Return why an fp16 set must be rejected: networks whose largest calibrated fp16 value is near fp16's range."""
    reasons = []
    for component, activation in activations.items():
        if not activation < LARGEST_ACTIVATION:
            limit = f"the limit is {LARGEST_ACTIVATION:.0f}"
            reasons.append(f"{component}: an fp16 activation of {activation:.0f}, {limit}")
    return reasons
