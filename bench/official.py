"""Images on the disk per second: the official code's loop, diffusers in batches, and `distill`; taking turns.

    d4m-fast export
    python bench/official.py > official.jsonl
    python bench/official.py --table official.jsonl

The official loop is diffusers' image-to-image pipeline called once per prototype, which embeds its prompt in each call,
the PNG written before the next call; the second row is the same pipeline on batches. Both get their prototypes from a
finished run and are timed without opening the pipeline. `distill`'s rows are whole runs from finished latents into a
new directory: opening networks, k-means, noise, denoising, decoding, PNG, commit and preview.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from engines import diffusers_pipeline
from safetensors.numpy import load_file

from d4m_fast import pipeline
from d4m_fast.allocator import keep_freed_memory
from d4m_fast.config.choices import PresetName
from d4m_fast.config.distill import NEGATIVE_PROMPT, DistillConfig
from d4m_fast.config.generation import PRESETS
from d4m_fast.console import Progress
from d4m_fast.engine.model import open_model
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.job import default_artifacts, prepare
from d4m_fast.sources.dataset import BUNDLED, open_source

OFFICIAL = "official loop"
Slot = tuple[np.ndarray, str]


def by_diffusers(found: Any, slots: list[Slot], batch: int, folder: Path) -> int:
    """Every slot's image, saved batch by batch."""
    for start in range(0, len(slots), batch):
        part = slots[start : start + batch]
        images = found(
            prompt=[prompt for _, prompt in part],
            image=torch.from_numpy(np.stack([latent for latent, _ in part])),
            strength=0.7,
            guidance_scale=8,
            num_inference_steps=50,
            negative_prompt=[NEGATIVE_PROMPT] * len(part),
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(part))],
        ).images
        for i, image in enumerate(images):
            image.save(folder / f"{start + i}.png")
    return len(slots)


def by_distill(preset: PresetName, engine: str, ipc: int, artifacts: Path, folder: Path) -> int:
    """A whole run of the bundled images, whose latents are there."""
    config = DistillConfig.of_preset(preset, ipc=ipc, engine=engine)
    job = prepare(config, artifacts=artifacts, run=folder)
    return int(pipeline.distill(job, folder, artifacts, Stopwatch(), Progress(quiet=True))["images"])


def prototypes(run: Path) -> list[Slot]:
    """Of a run, the first of every class before the second of any."""
    infos = open_source(BUNDLED).classes
    tables = [load_file(path)["centroids"] for path in sorted((run / "prototypes").iterdir())]
    pairs = zip(zip(*tables, strict=True), strict=True)
    return [(latent, info.prompt) for (row,) in pairs for latent, info in zip(row, infos, strict=True)]


def rate(make: Callable[[Path], int]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        count = make(Path(folder))
        return count / (time.perf_counter() - start)


def table(file: Path) -> str:
    rounds = [json.loads(line) for line in file.read_text().splitlines()]
    lines = ["| | images/s | times the official loop | rounds |", "|---|---|---|---|"]
    for row in rounds[0]:
        speed = statistics.median(found[row] for found in rounds)
        times = statistics.median(found[row] / found[OFFICIAL] for found in rounds)
        lines.append(f"| {row} | {speed:.2f} | {times:.1f} | {len(rounds)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--ipc", default=50, show_default=True)
@click.option("--one-by-one", "few", default=20, show_default=True, help="Images of the official loop.")
@click.option("--batch", default=128, show_default=True, help="Of diffusers, its best (`bench/engines.py`).")
@click.option("--engines", default="torch,onnx", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--artifacts", type=click.Path(path_type=Path), help="[default: the user's cache]")
@click.option("--table", "shown", type=click.Path(path_type=Path), help="Print such a file's table, instead.")
def main(
    ipc: int,
    few: int,
    batch: int,
    engines: str,
    rounds: int,
    artifacts: Path | None,
    shown: Path | None,
) -> None:
    if shown is not None:
        click.echo(table(shown))
        return
    keep_freed_memory()
    kept = default_artifacts() if artifacts is None else artifacts
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        by_distill("unipc", "torch", ipc, kept, run)
        slots, found = prototypes(run), diffusers_pipeline(open_model(BUNDLED))
    rows: dict[str, Callable[[Path], int]] = {
        OFFICIAL: partial(by_diffusers, found, slots[:few], 1),
        f"diffusers, batches of {batch}": partial(by_diffusers, found, slots[:batch], batch),
    }
    for engine in engines.split(","):
        for preset in PRESETS:
            rows[f"distill, {engine}, {preset}"] = partial(by_distill, preset, engine, ipc, kept)
    for name, make in rows.items():  # warms up
        if name != OFFICIAL:
            rate(make)
    for _ in range(rounds):
        click.echo(json.dumps({name: rate(make) for name, make in rows.items()}))


if __name__ == "__main__":
    main()
