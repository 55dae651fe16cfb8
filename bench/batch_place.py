"""Whether the bytes of a latent depend on its image's place in a batch, and on how many images are in it.

python bench/batch_place.py            bundled model, PyTorch on the CPU, one and two threads

It is why every container is read in class order: the batches, and so the bytes, are then the same.
"""

from __future__ import annotations

import json

import click
import numpy as np
import torch

from d4m_fast.engine.model import open_model
from d4m_fast.engine.networks import VaeEncoder, open_networks
from d4m_fast.sources.dataset import BUNDLED, open_source

IMAGES, BATCH = 200, 32


def encoded(vae: VaeEncoder, pixels: torch.Tensor, order: np.ndarray, batch: int) -> torch.Tensor:
    """Mean and standard deviation of each image, in the images' order, encoded in another."""
    rows: list[torch.Tensor] = [torch.empty(0)] * len(pixels)
    for start in range(0, len(order), batch):
        together = order[start : start + batch].tolist()
        scaled = pixels[together].permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        with torch.inference_mode():
            for row, mean, std in zip(together, *vae(scaled), strict=True):
                rows[row] = torch.cat([mean, std])
    return torch.stack(rows)


@click.command(help=__doc__)
def main() -> None:
    source, model = open_source(BUNDLED), open_model("bundled", None)
    networks = open_networks(model.path, torch.device("cpu"), torch.float32)
    pixels = torch.from_numpy(np.stack([np.array(source.read(item)) for item in source.items[:IMAGES]]))
    in_order, mixed = np.arange(IMAGES), np.random.default_rng(0).permutation(IMAGES)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        reference = encoded(networks.vae_encoder, pixels, in_order, BATCH)
        for name, order, batch in (
            ("again", in_order, BATCH),
            ("in a random order", mixed, BATCH),
            ("one less in a batch", in_order, BATCH - 1),
            ("one by one", in_order, 1),
        ):
            difference = (encoded(networks.vae_encoder, pixels, order, batch) - reference).abs().flatten(1)
            figures = {"images_that_differ": int((difference > 0).any(1).sum()), "most": float(difference.max())}
            click.echo(json.dumps({"threads": threads, "encoded": name, "images": IMAGES, "batch": batch, **figures}))


if __name__ == "__main__":
    main()
