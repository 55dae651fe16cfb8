"""Checks for NaN and infinity, made on the device and read with the batch, so that no black image is ever written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from d4m_fast.engine.memory import to_host
from d4m_fast.engine.signature import Component
from d4m_fast.errors import ModelError, NonFiniteError
from d4m_fast.sources.records import ClassInfo

# The largest number of fp16, in which latents are kept.
HALF_MAX = 65504.0
# The smallest number of fp16 that has all of its 11 bits.
HALF_NORMAL = 2.0**-14


class FiniteCheck:
    """Sums over the networks' outputs for the images of one batch, which stay on the device until the batch is read.

    A row's sum is finite exactly where all of its numbers are: one kernel a call, and no waiting. (Numbers that
    overflow only as a sum are above 1e32, which is no image either.)
    """

    def __init__(self) -> None:
        self._sums: list[torch.Tensor] = []
        self._calls: list[tuple[Component, float | None]] = []

    def add(self, network: Component, outputs: torch.Tensor, timestep: float | None = None) -> None:
        """Record a network's outputs (B, ...) for all images of the batch; the decoder may give them in parts."""
        # In float32, because a sum of many halves would overflow where none of them does.
        sums = outputs.flatten(1).sum(1, dtype=torch.float32)
        if network == "vae_decoder" and self._calls and self._calls[-1][0] == network:
            self._sums[-1] = torch.cat([self._sums[-1], sums])
        else:
            self._sums.append(sums)
            self._calls.append((network, timestep))

    def read(self) -> Callable[[Sequence[tuple[ClassInfo, int]]], None]:
        """Begin to copy the sums to the host.

        Returns:
            a function of the class and index of each of the batch's images, without the padding, that waits for the
            copy and raises NonFiniteError for the first number, in the order of `add`, that is NaN or infinite.
        """
        wait, calls = to_host(torch.stack(self._sums)), list(self._calls)

        def verify(images: Sequence[tuple[ClassInfo, int]]) -> None:
            finite = wait().isfinite()[:, : len(images)]
            if not finite.all():
                call, row = (~finite).nonzero()[0].tolist()
                network, timestep = calls[call]
                class_info, index = images[row]
                raise NonFiniteError(
                    network, f"class {class_info.folder} (id {class_info.id}), image {index}", timestep
                )

        return verify


def require_half_range(latents: np.ndarray, images: Sequence[str]) -> None:
    """Refuse latents (N, C, h, w) that are not finite, or that fp16, in which they are kept, cannot hold.

    Args:
        images: name of each, for the error.

    Raises:
        NonFiniteError: a latent is NaN or infinite.
        ModelError: a latent is beyond fp16's range, or so small that fp16 loses its digits.
    """
    if len(latents) == 0:
        return
    magnitudes = np.abs(latents).reshape(len(latents), -1).max(axis=1)
    for magnitude, image in zip(magnitudes, images, strict=True):
        if not np.isfinite(magnitude):
            raise NonFiniteError("vae_encoder", image)
        if magnitude > HALF_MAX or 0 < magnitude < HALF_NORMAL:
            raise ModelError(
                f"vae_encoder: the largest number in the latent of {image} is {magnitude:.3g}, and fp16, in which"
                f" latents are kept, goes from {HALF_NORMAL:.2g} to {HALF_MAX:.0f}; check scaling_factor in"
                " vae/config.json"
            )
