"""Images to latents: diffusers' VAE behind torchvision's DataLoader, and our encoding on PyTorch and on ONNX Runtime.

    PYTHONPATH=tests python bench/encoding.py --tar cifar10-imagefolder.tar --images 512
    PYTHONPATH=tests python bench/encoding.py --images 5000

With `--tar`, CIFAR-10's images at 256 pixels through a random-weight VAE with channels 8, 16, 32, 64; without, the
bundled images, as an ImageFolder of PNG files, through the bundled model. Same files, same machine, fp32, posterior
sampled, freed memory kept by the allocator; each at its best batch, and the peer at its best number of workers, found
in a first round. Ours writes its latents to the disk, which the peer does not. Rows take turns; each figure is the
median of the rounds.
"""

from __future__ import annotations

import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

from d4m_fast.allocator import keep_freed_memory
from d4m_fast.engine.encode import encode
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.ort import open_ort
from d4m_fast.export.to_onnx import export_onnx, opset_of
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.latents import LatentStore
from d4m_fast.runs.ranges import OwnRanges
from d4m_fast.sources.arrays import bundled
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.labels import Prompts

CPU = torch.device("cpu")
Make = Callable[[], object]


def folder_of_cifar(archive: Path, folder: Path, images: int) -> Path:
    """The first images of every class."""
    with tarfile.open(archive) as tar:
        for member in tar:
            split, *rest = Path(member.name).parts
            file = tar.extractfile(member) if split == "train" and member.isfile() else None
            if file is not None and int(Path(rest[1]).stem) < images // 10:
                (folder / rest[0]).mkdir(parents=True, exist_ok=True)
                (folder / rest[0] / rest[1]).write_bytes(file.read())
    return folder


def folder_of_bundled(folder: Path, images: int) -> Path:
    source = bundled("train", Prompts())
    for item in source.items[:images]:
        (folder / str(item.class_id)).mkdir(parents=True, exist_ok=True)
        source.read(item).save(folder / str(item.class_id) / f"{item.rank:05d}.png")
    return folder


def by_peer(data: Path, model: Model, side: int, batch: int, workers: int) -> Make:
    """diffusers' AutoencoderKL, unchanged, on what torchvision's ImageFolder and DataLoader hand it."""
    from diffusers import AutoencoderKL
    from torchvision import datasets, transforms

    steps = [transforms.Resize((side, side)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    images = datasets.ImageFolder(str(data), transforms.Compose(steps))
    vae = AutoencoderKL.from_pretrained(model.path / "vae", low_cpu_mem_usage=False)

    def make() -> object:
        loader = torch.utils.data.DataLoader(images, batch, num_workers=workers)
        with torch.inference_mode():
            drawn = [vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor for pixels, _ in loader]
        return torch.cat(drawn)

    return make


def by_us(data: Path, model: Model, networks: Networks, side: int, batch: int) -> object:
    source, shape = open_source(str(data)), model.latent_shape(side)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, Workers(watch) as workers:
        store = LatentStore(Path(folder), {"batch": batch}, source.items, shape)
        encoder = networks.vae_encoder
        ours = OwnRanges(store.missing)
        spans = store.spans(ours)
        made = encode(source, encoder, resolution=side, draw=shape, batch=store.batch, workers=workers, spans=spans)
        return len(list(store.fill(made, workers, ours)))


def on_ort(model: Model, side: int, folder: Path) -> Networks:
    sizes, file = model.sizes(side), folder / "vae_encoder.onnx"
    opset = opset_of("onnx", "vae_encoder")
    export_onnx(model.path, "vae_encoder", file, sizes=sizes, opset=opset, metadata={}, for_ort=True)
    threads = torch.get_num_threads()
    return Networks(model.path, lambda c: open_ort(file, c, sizes, CPU, threads=threads))


def seconds(make: Make) -> float:
    before = time.perf_counter()
    make()
    return time.perf_counter() - before


def best(rows: dict[str, Make]) -> tuple[str, Make]:
    """The fastest of some, each run once after a warm-up."""
    next(iter(rows.values()))()
    taken = {name: seconds(make) for name, make in rows.items()}
    click.echo(json.dumps({"first round": taken}))
    name = min(taken, key=taken.__getitem__)
    return name, rows[name]


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


@click.command(help=__doc__)
@click.option("--tar", "archive", type=click.Path(path_type=Path, exists=True))
@click.option("--images", default=512, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--batches", default="16,32,64", show_default=True, help="Of the peer.")
@click.option("--workers", default="0,1,2", show_default=True, help="Of the peer.")
def main(archive: Path | None, images: int, rounds: int, batches: str, workers: str) -> None:
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if archive is None:
            model, data = open_model("bundled"), folder_of_bundled(folder / "data", images)
        else:
            from models import write_model

            model = open_model(str(write_model(folder / "model", vae_channels=(8, 16, 32, 64), sample_size=32)))
            data = folder_of_cifar(archive, folder / "data", images)
        report(data, model, folder, rounds, numbers(batches), numbers(workers))


def report(data: Path, model: Model, folder: Path, rounds: int, batches: list[int], workers: list[int]) -> None:
    side, count = model.resolution, len(open_source(str(data)).items)
    grid = product(batches, workers)
    peers = {f"diffusers and DataLoader, batch {b}, {w} workers": by_peer(data, model, side, b, w) for b, w in grid}
    chosen = [best(peers)]
    for name, networks in (
        ("PyTorch", open_networks(model.path, CPU, torch.float32)),
        ("ONNX Runtime", on_ort(model, side, folder)),
    ):
        chosen.append(
            best({f"ours, {name}, batch {b}": partial(by_us, data, model, networks, side, b) for b in batches})
        )
    peer, rows = chosen[0][0], dict(chosen)
    taken: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(1 + rounds):  # the first warms up
        for row, run in rows.items():
            taken[row].append(seconds(run))
    ratios: dict[str, Any] = {
        row: statistics.median(a / b for a, b in zip(taken[peer][1:], taken[row][1:], strict=True)) for row in rows
    }
    for row, spent in taken.items():
        rate = count / statistics.median(spent[1:])
        click.echo(json.dumps({"row": row, "images": count, "images_per_second": rate, "ratio": ratios[row]}))


if __name__ == "__main__":
    main()
