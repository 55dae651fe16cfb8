"""Latents to time k-means on, a float16 .npy of (n, C, h, w) per class.

    python bench/latents.py fashion /usr/share/datasets/fashion-mnist build/latents/fashion
    PYTHONPATH=tests python bench/latents.py cifar cifar10-imagefolder.tar build/latents/cifar

`fashion`: Fashion-MNIST's training images (10 x 6,000) through the bundled VAE, 256 values each. `cifar`: CIFAR-10's
first 2,000 of each class at 256 pixels through a VAE with random weights and channels 8, 16, 32, 64, 4,096 values each.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import click
import torch

from d4m_fast.engine.encode import encode
from d4m_fast.engine.model import open_model
from d4m_fast.engine.networks import open_networks
from d4m_fast.fingerprints import fingerprint
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.latents import LatentStore
from d4m_fast.runs.ranges import OwnRanges
from d4m_fast.sources.dataset import BUNDLED, open_source

PER_CLASS = 2000


def cifar(archive: Path, work: Path) -> tuple[Path, str, int]:
    """The images, the model and the resolution."""
    from models import write_model

    with tarfile.open(archive) as tar:
        train = [m for m in tar if m.isfile() and Path(m.name).parts[0] == "train"]
        tar.extractall(work, [m for m in train if int(Path(m.name).stem) < PER_CLASS], filter="data")
    return work / "train", str(write_model(work / "model", vae_channels=(8, 16, 32, 64), sample_size=32)), 256


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(["fashion", "cifar"]))
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--batch", default=50, show_default=True)
def main(name: str, data: Path, out: Path, batch: int) -> None:
    images, model_name, resolution = (data, BUNDLED, 32) if name == "fashion" else cifar(data, out.parent)
    source, model = open_source(str(images)), open_model(model_name)
    made_by = {"source": source.fingerprint, "model": fingerprint(model.sha256), "batch": batch}
    store = LatentStore(out, made_by, source.items, model.latent_shape(resolution))
    if not store.complete:
        vae = open_networks(model.path, torch.device("cpu"), torch.float32).vae_encoder
        shape = model.latent_shape(resolution)
        ours = OwnRanges(store.missing)
        with Workers(Stopwatch()) as workers:
            spans = store.spans(ours)
            batches = encode(
                source, vae, resolution=resolution, draw=shape, batch=store.batch, workers=workers, spans=spans
            )
            for _ in store.fill(batches, workers, ours):
                pass
        store.finish()


if __name__ == "__main__":
    main()
