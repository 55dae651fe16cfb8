"""Parity of a runtime with fp32 PyTorch: its differences on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from d4m_fast.engine.guidance import guide
from d4m_fast.engine.runtime import Runtime, Tensors, cut
from d4m_fast.engine.signature import SIGNATURES, Component

IDENTICAL_PSNR = 99.0  # dB, written where two images do not differ


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
    """Compare every recorded call as it was made, and the first and the last at each of `batches`.

    The UNet's recorded calls are guided, but of one that is told the scale; at each of `batches` it is called without
    guidance, too.

    Args:
        guidance: the scale that recorded UNet calls were made for; None leaves it out.
    """
    samples, rows = SIGNATURES[component].samples, SIGNATURES[component].rows
    scaled_calls: list[tuple[Tensors, float | None]] = []
    for call in calls:
        is_guided = rows(call) > samples(call)  # two rows per sample
        scaled_calls.append((call, guidance if is_guided else None))
    for call in calls if len(calls) < 2 else (calls[0], calls[-1]):
        for batch in batches:
            sized = resized(component, call, batch)
            scaled_calls.append((sized, None))
            if component == "unet":
                scaled_calls.append((unguided(sized), None))
    parities = []
    for call, scale in scaled_calls:
        parities.append(_parity(samples(call), call, reference(call), candidate(call), scale))
    return parities


def unguided(call: Tensors) -> Tensors:
    """Return a UNet call without its unconditional half."""
    return {**call, "hidden_states": call["hidden_states"][-call["sample"].shape[0] :]}


def first_images(component: Component, call: Tensors, images: int) -> Tensors:
    """Return the call for its first images alone; the UNet's keeps both halves of guidance."""
    signature = SIGNATURES[component]
    return cut(call, signature, torch.arange(min(images, signature.samples(call))))


def resized(component: Component, call: Tensors, batch: int) -> Tensors:
    """Return the call with its samples repeated, or cut, to `batch`."""
    signature = SIGNATURES[component]
    return cut(call, signature, torch.arange(batch) % signature.samples(call))


def _parity(batch: int, call: Tensors, expected: Tensors, answer: Tensors, guidance: float | None) -> Parity:
    differences, errors, guided_errors = [], [], []
    for name, tensor in expected.items():
        # In float64, so that the comparison adds no rounding of its own.
        x, y = tensor.cpu().double(), answer[name].cpu().double()
        differences.append(float((y - x).abs().max()))
        errors.append(_relative_l2(x, y))
        if guidance is not None:
            guided_errors.append(_relative_l2(guide(x, guidance), guide(y, guidance)))
    timestep = int(call["timestep"]) if "timestep" in call else None
    guided_l2 = None if guidance is None else largest(guided_errors)
    return Parity(batch, timestep, largest(differences), largest(errors), guided_l2)


def largest(errors: Iterable[float]) -> float:
    """Return the largest error; NaN counts as infinite, wherever it stands."""
    return max(errors, key=nan_as_infinity)


def nan_as_infinity(error: float) -> float:
    return float("inf") if np.isnan(error) else error


def _relative_l2(expected: torch.Tensor, answer: torch.Tensor) -> float:
    return float((answer - expected).norm() / expected.norm())


def psnr(expected: np.ndarray, answer: np.ndarray) -> list[float]:
    """Return the peak signal-to-noise ratio in dB of each of (N, H, W, 3) uint8 images."""
    error = ((expected.astype(np.float64) - answer.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):  # identical images: infinite, and cut
        decibels: list[float] = np.minimum(10 * np.log10(255**2 / error), IDENTICAL_PSNR).tolist()
    return decibels


def half_errors(ours: Sequence[Parity], pytorch: Sequence[Parity], rows: int) -> HalfErrors:
    """Return the worst errors of two comparisons with the same reference, on the same calls."""
    pytorch_guided = _largest_guided(pytorch)
    return HalfErrors(
        largest(call.relative_l2 for call in ours),
        _finite(largest(call.relative_l2 for call in pytorch)),
        _largest_guided(ours),
        None if pytorch_guided is None else _finite(pytorch_guided),
        rows,
        len(ours),
    )


def _largest_guided(comparison: Sequence[Parity]) -> float | None:
    errors = [call.guided_l2 for call in comparison if call.guided_l2 is not None]
    return largest(errors) if errors else None


def _finite(error: float) -> float | None:
    return error if np.isfinite(error) else None


def to_json(parities: Iterable[Parity]) -> list[dict[str, Any]]:
    return list(map(asdict, parities))
