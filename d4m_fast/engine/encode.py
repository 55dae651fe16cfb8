"""Real images to latents: one pass over the source in its own order, in batches the plan fixes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from d4m_fast.config import LatentKind, derive_seed
from d4m_fast.data.latents import EncodedBatch, Failure
from d4m_fast.data.records import Item, Source
from d4m_fast.data.stream import Stream
from d4m_fast.engine.networks import VaeEncoder
from d4m_fast.errors import DataError

POSTERIOR_SEED = 0  # the draw from the posterior is the run seed's business no more than the choice of images is


def encode(
    source: Source, vae: VaeEncoder, *, resolution: int, latent: LatentKind, batch: int, start: int = 0
) -> Stream[EncodedBatch]:
    """Scaled latents of `source.items[start:]`.

    Images are squeezed to squares of `resolution` as the official code does; `latent` "sample" draws from the
    posterior, "mean" takes its mean. A damaged image is reported among its batch's failures and leaves the others'
    bytes as they are.
    """
    items = source.items
    pieces = [items[i : i + batch] for i in range(start, len(items), batch)]
    return Stream(len(pieces), (_encode(source, piece, vae, resolution, latent) for piece in pieces))


def _encode(
    source: Source, items: Sequence[Item], vae: VaeEncoder, resolution: int, latent: LatentKind
) -> EncodedBatch:
    pixels = torch.zeros(len(items), 3, resolution, resolution)
    good, failures = [], []
    for row, item in enumerate(items):
        try:
            pixels[row] = _to_tensor(source.read(item), resolution)
            good.append(row)
        except DataError as error:
            failures.append(Failure(item, str(error)))
    mean, std = vae(pixels)
    if latent == "sample":
        mean = mean + std * _noise(items, mean.shape[1:]).to(std)
    return EncodedBatch([items[row] for row in good], mean.float().cpu().numpy()[good], failures)


def _to_tensor(image: Image.Image, resolution: int) -> torch.Tensor:
    """(3, resolution, resolution) in [-1, 1]."""
    if image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def _noise(items: Sequence[Item], shape: torch.Size) -> torch.Tensor:
    """One stream per image, so that no image's draw depends on its batch."""
    generator = torch.Generator()
    seeds = (derive_seed(POSTERIOR_SEED, item.class_id, item.rank, "encode") for item in items)
    return torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in seeds])
