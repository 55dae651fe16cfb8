"""Seconds that listing class folders of empty image files takes, the least of several rounds.

python bench/listing.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from d4m_fast.sources.dataset import open_source

ROUNDS = 5


@click.command(help=__doc__)
@click.option("--images", default=100_000, show_default=True)
@click.option("--classes", default=1000, show_default=True)
def main(images: int, classes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for i in range(images):
            file = Path(folder, f"c{i % classes:04d}", f"{i:08d}.jpg")
            file.parent.mkdir(exist_ok=True)
            file.touch()
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            open_source(folder)
            seconds.append(time.perf_counter() - start)
    click.echo(f"{images:,} files, {classes:,} classes: {min(seconds):.2f} s")


if __name__ == "__main__":
    main()
