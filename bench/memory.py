"""Peak memory of a run with few large classes and with many small ones: it must not grow with their number.

    PYTHONPATH=tests python bench/memory.py --tar cifar10-imagefolder.tar --work build/memory

The same images, CIFAR-10's, lie in 10 and in 100 class folders; latents have 4,096 values (a random-weight VAE with
channels 8, 16, 32, 64 at 256 pixels). Peaks are the operating system's, of the whole process, and are given above
those of a process that only imports everything and loads the networks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import click
from models import write_model

EMPTY = """
import sys, torch
from pathlib import Path
from d4m_fast.cli import cli
from d4m_fast.engine.networks import open_networks
networks = open_networks(Path(sys.argv[1]), torch.device("cpu"), torch.float32)
networks.text_encoder, networks.vae_encoder, networks.unet, networks.vae_decoder
"""


def unpack(archive: Path, work: Path, per_class: int, parts: int) -> Path:
    """The training images as an ImageFolder, each class cut into `parts` folders."""
    folder = work / f"{10 * parts}-classes"
    with tarfile.open(archive) as tar:
        for member in tar:
            split, *rest = Path(member.name).parts
            if split == "train" and member.isfile() and int(Path(rest[1]).stem) < per_class:
                place = folder / f"{rest[0]}-{int(Path(rest[1]).stem) * parts // per_class}" / rest[1]
                place.parent.mkdir(parents=True, exist_ok=True)
                file = tar.extractfile(member)
                if file is not None:
                    place.write_bytes(file.read())
    return folder


def peak_megabytes(*command: object) -> float:
    """Largest resident size of a child process."""
    child = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise click.ClickException(f"{command} ended with status {status}")
    return usage.ru_maxrss / 1024


@click.command(help=__doc__)
@click.option("--tar", "archive", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--work", type=click.Path(path_type=Path), default="build/memory", show_default=True)
@click.option("--per-class", default=2000, show_default=True, help="Images of each of CIFAR-10's classes.")
@click.option("--steps", default=10, show_default=True)
def main(archive: Path, work: Path, per_class: int, steps: int) -> None:
    model = write_model(work / "model", vae_channels=(8, 16, 32, 64), sample_size=32)
    empty = peak_megabytes("-c", EMPTY, model)
    row = {"images": 10 * per_class, "empty_mb": round(empty)}
    for parts in (1, 10):
        data = unpack(archive, work, per_class, parts)
        run, cache = work / f"run-{10 * parts}", work / f"cache-{10 * parts}"
        command = ("-m", "d4m_fast", "distill", "--data", data, "--model", model, "--ipc", 10, "--steps", steps)
        above = peak_megabytes(*command, "--out", run, "--artifacts", cache) - empty
        row[f"above_empty_mb_{10 * parts}_classes"] = round(above)
    click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
