"""Peak of the machine, measured: GFLOP/s of its best matrix product and its best convolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import conv2d

from d4m_fast.measure.clock import Call, time_call

SIDES = (512, 1024, 2048, 4096, 8192, 16384)
CHANNELS = (32, 64, 128, 256, 512, 1024, 2048)
IMAGES, PIXELS, KERNEL = 8, 64, 3  # of the convolution
LONG_ENOUGH = 0.1  # seconds; a longer problem is no better filled
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Peak:
    """GFLOP/s that a machine reaches, 2 per multiply-add."""

    matrix_product: float
    convolution: float

    @property
    def best(self) -> float:
        return max(self.matrix_product, self.convolution)

    def or_better(self, second: Peak) -> Peak:
        """Return the better of two measurements: other work on the machine can only have made one slower."""
        return Peak(
            max(self.matrix_product, second.matrix_product),
            max(self.convolution, second.convolution),
        )


@torch.inference_mode()
def measure_peak(device: torch.device, dtype: torch.dtype, long_enough: float = LONG_ENOUGH) -> Peak:
    """Measure the best of several sizes, the largest of which takes at least `long_enough` seconds or is the last."""
    return Peak(
        _best(_products(device, dtype), device, long_enough),
        _best(_convolutions(device, dtype), device, long_enough),
    )


def _products(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[int, Call]]:
    """Yield FLOP and call of square products, ever larger."""
    for side in SIDES:
        a = torch.randn(side, side, device=device, dtype=dtype)
        b = torch.randn(side, side, device=device, dtype=dtype)
        yield 2 * side**3, partial(torch.mm, a, b)


def _convolutions(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[int, Call]]:
    """Yield FLOP and call of 3x3 convolutions as the networks have them, ever wider."""
    # Laid out as the runtime lays them out.
    layout = torch.contiguous_format if device.type == "cpu" else torch.channels_last
    for width in CHANNELS:
        x = torch.randn(IMAGES, width, PIXELS, PIXELS, device=device, dtype=dtype).contiguous(memory_format=layout)
        kernel = torch.randn(width, width, KERNEL, KERNEL, device=device, dtype=dtype).contiguous(memory_format=layout)
        flop = 2 * IMAGES * PIXELS**2 * KERNEL**2 * width**2
        yield flop, partial(conv2d, x, kernel, padding=1)


def _best(problems: Iterator[tuple[int, Call]], device: torch.device, long_enough: float) -> float:
    best = 0.0
    for flop, call in problems:
        call()  # warms up
        seconds = min(time_call(call, device) for _ in range(ROUNDS))
        best = max(best, flop / seconds / 1e9)
        if seconds >= long_enough:
            break
    return best
