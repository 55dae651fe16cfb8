"""Real images to latents: one pass over the source in its own order, in batches the plan fixes.

Threads read, decode and resize ahead of the encoder and write behind it; the encoder's thread only computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from d4m_fast.engine.finite import require_half_range
from d4m_fast.engine.memory import fitting, host_empty, to_device, to_host
from d4m_fast.engine.networks import VaeEncoder
from d4m_fast.errors import DataError
from d4m_fast.fingerprints import derive_seed
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.latents import EncodedBatch, Failure
from d4m_fast.sources.decode import has_more_frames
from d4m_fast.sources.records import Item, Source

POSTERIOR_SEED = 0  # the draw from the posterior is the run seed's business no more than the choice of images is
MOST_READERS = 8


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch on the host.

    Attributes:
        pixels: (n, H, W, 3) uint8; zeros where an image is damaged.
        noise: (n, C, h, w), or nothing where the posterior's mean is taken.
        good: rows that are not damaged.
        first_frames: how many of them are the first frame of an animated image.
    """

    items: Sequence[Item]
    pixels: torch.Tensor
    noise: torch.Tensor | None
    good: list[int]
    failures: list[Failure]
    first_frames: int


@dataclass(frozen=True)
class Loader:
    """Reads batches of a source, squeezed to squares of `resolution` as the official code does."""

    source: Source
    resolution: int
    draw: tuple[int, int, int] | None
    device: torch.device

    def __call__(self, items: Sequence[Item]) -> Loaded:
        pixels = host_empty((len(items), self.resolution, self.resolution, 3), torch.uint8, self.device)
        good, failures, first_frames = [], [], 0
        for row, item in enumerate(items):
            try:
                image = self.source.read(item)
                pixels[row] = torch.from_numpy(self._square(image))
                good.append(row)
                first_frames += has_more_frames(image)
            except DataError as error:
                pixels[row] = 0
                failures.append(Failure(item, str(error)))
        return Loaded(items, pixels, self._noise(items), good, failures, first_frames)

    def _square(self, image: Image.Image) -> np.ndarray:
        side = (self.resolution, self.resolution)
        return np.array(image if image.size == side else image.resize(side, Image.Resampling.BILINEAR))

    def _noise(self, items: Sequence[Item]) -> torch.Tensor | None:
        """One stream per image, so that no image's draw depends on its batch."""
        if self.draw is None:
            return None
        noise, generator = host_empty((len(items), *self.draw), torch.float32, self.device), torch.Generator()
        for row, item in zip(noise, items, strict=True):
            seed = derive_seed(POSTERIOR_SEED, item.class_id, item.rank, "encode")
            torch.randn(row.shape, generator=generator.manual_seed(seed), out=row)
        return noise


def encode(
    source: Source,
    vae: VaeEncoder,
    *,
    resolution: int,
    draw: tuple[int, int, int] | None,
    batch: int,
    workers: Workers,
    start: int = 0,
) -> Stream[EncodedBatch]:
    """Scaled latents of `source.items[start:]`.

    An image that cannot be read is reported among its batch's failures and leaves the others' bytes as they are.

    Args:
        draw: shape of a latent, to draw each image's from the posterior; None takes the posterior's mean.

    Raises (from the stream):
        OutOfMemoryError: a batch does not fit the device.
        NonFiniteError: a latent is not finite; nothing of its batch comes.
        ModelError: a latent leaves the range of fp16, in which it would be kept; likewise.
    """
    items, readers = source.items, readers_here()
    load = Loader(source, resolution, draw, vae.runtime.device)
    pieces = Stream(-(-(len(items) - start) // batch), (items[i : i + batch] for i in range(start, len(items), batch)))
    loaded = workers.map(load, pieces, threads=readers, depth=readers + 1, name="read")
    encoded = Stream(len(pieces), ((piece, _latents(piece, vae)) for piece in loaded))
    return workers.map(_landed, encoded, threads=1, depth=1, name="fetch")


def readers_here() -> int:
    """Threads that read images."""
    count = os.cpu_count()
    return 1 if count is None else min(count, MOST_READERS)


def _latents(loaded: Loaded, vae: VaeEncoder) -> Callable[[], torch.Tensor]:
    device = vae.runtime.device
    with fitting("encode"), torch.inference_mode():
        pixels = to_device(loaded.pixels, device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        mean, std = vae(pixels)
        drawn = mean if loaded.noise is None else mean + std * to_device(loaded.noise, device).to(std)
        return to_host(drawn.float())


def _landed(encoded: tuple[Loaded, Callable[[], torch.Tensor]]) -> EncodedBatch:
    loaded, wait = encoded
    items, latents = [loaded.items[row] for row in loaded.good], wait().numpy()[loaded.good]
    require_half_range(latents, [f"{item.origin} (class id {item.class_id})" for item in items])
    return EncodedBatch(items, latents, loaded.failures, loaded.first_frames)
