"""Does a run's cost grow with its images, and with nothing else?

    export PYTHONPATH=tests
    for n in 1000 10000 50000; do python bench/linear.py --images $n; done
    python bench/linear.py --images 50000 --resumed

Runs of 50 images per class, made from as many real ones, with a random-weight model so small (8x8 latents, 16-pixel
images, three UNet calls) that everything around it counts. A row has milliseconds per image and stage, the part spent
on plan and manifest, and on commit records, and the peak memory of the process. With `--resumed` the last group of the
finished run is taken back, and the row has the seconds from the end of the imports to its first image. `--most` cuts a
run into pieces, a row each: "made" says of how many images.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from models import write_model
from PIL import Image

from d4m_fast import console, pipeline
from d4m_fast.config.distill import DistillConfig
from d4m_fast.console import Progress
from d4m_fast.engine.modules import import_libraries
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.job import prepare, require_disk
from d4m_fast.runs.commit import write_record
from d4m_fast.runs.run import RunDirectory

IPC = 50
SIDE = 16  # pixels
PLAN, RECORDS = "plan and manifest", "commit records"
BOOKED = {
    **dict.fromkeys(("saved_plan", "committed", "finished", "_write_manifest"), PLAN),
    "_write_preview": "preview",
}


def write_images(folder: Path, count: int) -> Path:
    """`count` images of noise, as many per class as are made of it; none if they are there."""
    rng = np.random.default_rng(0)
    if not folder.exists():
        for i in range(count // IPC):
            place = folder.with_suffix(".part") / f"{i:05d}"
            place.mkdir(parents=True)
            for j, pixels in enumerate(rng.integers(0, 256, (IPC, SIDE, SIDE, 3), np.uint8)):
                Image.fromarray(pixels).save(place / f"{j:05d}.png")
        folder.with_suffix(".part").rename(folder)
    return folder


def take_back_the_last_group(run: Path) -> None:
    (run / "summary.json").unlink(missing_ok=True)
    max((run / "groups").glob("*.json")).unlink()


def booked(watch: Stopwatch, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        with watch(stage):
            return function(*args, **named)

    return call


def housekeeping(watch: Stopwatch) -> Iterator[Any]:
    """Patches that book what is neither a stage's nor a file's."""
    for name, stage in BOOKED.items():
        yield mock.patch.object(RunDirectory, name, booked(watch, stage, getattr(RunDirectory, name)))
    yield mock.patch("d4m_fast.runs.run.write_record", booked(watch, RECORDS, write_record))


class Stopped(Exception):
    """As many images as were asked for."""


class Counted:
    """Progress that notes when the first image came, and stops the run after the last that is wanted."""

    def __init__(self, most: int | None) -> None:
        self.at: float | None = None
        self.count = 0
        self._most = most

    def __call__(self, label: str, items: Any, quiet: bool) -> Iterator[Any]:
        for item in items:
            if label == "distill":
                self.at = time.perf_counter() if self.at is None else self.at
                self.count += 1
            yield item
            if self.count == self._most:
                raise Stopped


def run_once(images: int, work: Path, most: int | None) -> dict[str, Any]:
    """One run, or the rest of one; seconds by stage, and what came when."""
    data, model = write_images(work / f"images-{images}", images), work / "model"
    if not model.exists():
        write_model(model)
    config = DistillConfig(data=str(data), model=str(model), ipc=IPC, steps=4, strength=0.5, batch_size=50)
    run, artifacts = work / f"run-{images}", work / "artifacts"
    import_libraries(networks=True)
    watch, progress, start = Stopwatch(), Counted(most), time.perf_counter()
    patches = [mock.patch.object(console, "track", progress), *housekeeping(watch)]
    for patch in patches:
        patch.start()
    with watch("open"):
        job = prepare(config, artifacts=artifacts, run=run)
        require_disk(job, run, artifacts)
    with contextlib.suppress(Stopped):
        pipeline.distill(job, run, artifacts, watch, Progress(quiet=True))
    wall = time.perf_counter() - start
    for patch in patches:
        patch.stop()
    first = None if progress.at is None else progress.at - start
    return {"wall": wall, "first": first, "made": progress.count, "seconds": watch.seconds}


@click.command(help=__doc__)
@click.option("--images", default=1000, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default="build/linear", show_default=True)
@click.option("--resumed", is_flag=True, help="Take the last group of the finished run back, and go on.")
@click.option("--most", type=int, help="Images to make now; the same command then goes on.  [default: all]")
@click.option("--fresh/--no-fresh", default=False, help="Remove an earlier run of this size, and its latents, first.")
def main(images: int, work: Path, resumed: bool, most: int | None, fresh: bool) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if fresh:
        shutil.rmtree(work / f"run-{images}", ignore_errors=True)
        shutil.rmtree(work / "artifacts", ignore_errors=True)
    if resumed:
        take_back_the_last_group(work / f"run-{images}")
    found = run_once(images, work, most)
    made, seconds = max(1, found["made"]), found["seconds"]
    row = {
        "images": images,
        "made": found["made"],
        "threads": torch.get_num_threads(),
        "seconds": round(found["wall"], 2),
        "seconds_to_first_image": None if found["first"] is None else round(found["first"], 2),
        "ms_per_image": round(1e3 * found["wall"] / made, 3),
        "stage_ms_per_image": {name: round(1e3 * spent / made, 3) for name, spent in seconds.items()},
        "share_of_time": {name: round(seconds.get(name, 0.0) / found["wall"], 4) for name in (PLAN, RECORDS)},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
