"""Real images to latents: one pass over the source in its own order, in batches of the size that the plan fixes.

Threads read, decode and resize ahead of the encoder and write behind it; the encoder's thread only computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

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

# Latents are kept and shared between runs, so the draw from the posterior may not depend on a run's seed.
POSTERIOR_SEED = 0
# Bounds the threads on machines with many cores, and so the batches that wait in memory.
MOST_READERS = 8


@dataclass(frozen=True, slots=True)
class LoadedBatch:
    """A batch of real images on the host.

    Attributes:
        first: position of the first item in the source.
        pixels: (n, H, W, 3) uint8; zeros where an image is damaged.
        noise: (n, C, h, w); None where the posterior's mean is taken.
        readable: rows of the images that are not damaged.
        first_frames: number of those that are the first frame of an animated image.
    """

    items: Sequence[Item]
    first: int
    pixels: torch.Tensor
    noise: torch.Tensor | None
    readable: list[int]
    failures: list[Failure]
    first_frames: int


@dataclass(frozen=True)
class Loader:
    """Reader of a source's batches, squeezed to squares of `resolution` as the official code does."""

    source: Source
    resolution: int
    draw: tuple[int, int, int] | None
    device: torch.device

    def __call__(self, span: tuple[int, int]) -> LoadedBatch:
        """Read the items of a source from one position up to another."""
        items = self.source.items[slice(*span)]
        side = (self.resolution, self.resolution)
        pixels = host_empty((len(items), *side, 3), torch.uint8, self.device)
        readable, failures, first_frames = [], [], 0
        for row, item in enumerate(items):
            try:
                image = self.source.read(item)
                square = image if image.size == side else image.resize(side, Image.Resampling.BILINEAR)
                pixels[row] = torch.from_numpy(np.array(square))
                readable.append(row)
                first_frames += has_more_frames(image)
            except DataError as error:
                pixels[row] = 0
                failures.append(Failure(item, str(error)))
        return LoadedBatch(items, span[0], pixels, self._noise(items), readable, failures, first_frames)

    def _noise(self, items: Sequence[Item]) -> torch.Tensor | None:
        """Return each image's noise, from a generator of its own, so that no draw depends on the batch."""
        if self.draw is None:
            return None
        noise = host_empty((len(items), *self.draw), torch.float32, self.device)
        generator = torch.Generator()
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
    spans: Iterable[tuple[int, int]] | None = None,
) -> Stream[EncodedBatch]:
    """Yield the scaled latents of `source.items[start:]`, batch by batch.

    An image that cannot be read is reported among its batch's failures and leaves the others' bytes as they are.

    Args:
        batch: most items of one.
        spans: where each batch begins and ends in the source, asked for a few batches before the encoder needs them;
            None is all of it from `start` on, in batches of `batch`.
        draw: shape of a latent, to draw each image's from the posterior; None takes the posterior's mean.

    Raises (from the stream):
        OutOfMemoryError: a batch does not fit the device.
        NonFiniteError: a latent is not finite; its batch is not yielded.
        ModelError: a latent leaves the range of fp16, in which it would be kept; its batch is not yielded.
    """
    items, readers = source.items, readers_here()
    load = Loader(source, resolution, draw, vae.runtime.device)
    starts = range(start, len(items), batch)
    if spans is None:
        spans = ((first, min(first + batch, len(items))) for first in starts)
    loaded_batches = workers.map(load, Stream(len(starts), spans), threads=readers, depth=readers + 1, name="read")
    batches_in_work = Stream(len(starts), map(partial(_begin_encoding, vae), loaded_batches))
    return workers.map(_finish_encoding, batches_in_work, threads=1, depth=1, name="fetch")


def readers_here() -> int:
    """Return the number of threads that read images on this machine."""
    count = os.cpu_count()
    return 1 if count is None else min(count, MOST_READERS)


def _begin_encoding(vae: VaeEncoder, batch: LoadedBatch) -> tuple[LoadedBatch, Callable[[], torch.Tensor]]:
    """Encode a batch, and begin the copy to the host that the function beside it waits for."""
    device = vae.runtime.device
    with fitting("encode"), torch.inference_mode():
        mean, std = vae(from_bytes(to_device(batch.pixels, device)))
        latents = mean if batch.noise is None else mean + std * to_device(batch.noise, device).to(std)
        return batch, to_host(latents.float())


def from_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Convert (N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1], the range that the VAE's encoder takes."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _finish_encoding(batch_in_work: tuple[LoadedBatch, Callable[[], torch.Tensor]]) -> EncodedBatch:
    """Wait for a batch's latents, and leave out the rows of damaged images."""
    batch, wait = batch_in_work
    latents = wait().numpy()[batch.readable]
    items, names = list[Item](), list[str]()
    for row in batch.readable:
        item = batch.items[row]
        items.append(item)
        names.append(f"{item.origin} (class id {item.class_id})")
    require_half_range(latents, names)
    return EncodedBatch(items, latents, batch.failures, batch.first_frames, batch.first)
