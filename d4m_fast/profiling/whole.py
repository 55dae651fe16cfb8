"""A small run from end to end, with the loop that `distill` runs."""

from __future__ import annotations

import time
from pathlib import Path

from d4m_fast.config.distill import DistillConfig
from d4m_fast.console import Progress
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.job import Job, prepare
from d4m_fast.measure.flops import Shapes
from d4m_fast.measure.memory import PeakMemory
from d4m_fast.pipeline import distill
from d4m_fast.profiling.measure import Row
from d4m_fast.sources.records import Source, by_class

IMAGES_PER_CLASS = 16
IMAGES_PER_PROTOTYPE = 4


def write_few(source: Source, images: int, folder: Path) -> int:
    """At most `images` of a source as class folders of PNG files, up to 16 of each of its first classes.

    Returns:
        prototypes per class that these are enough for.
    """
    grouped = by_class(source.items)
    per_class = min(images, IMAGES_PER_CLASS, *(len(items) for items in grouped.values()))
    for info in source.classes[: images // per_class]:
        place = folder / info.folder
        place.mkdir(parents=True)
        for item in grouped[info.id][:per_class]:
            source.read(item).save(place / f"{item.rank:05d}.png")
    return max(1, per_class // IMAGES_PER_PROTOTYPE)


def whole_run(
    config: DistillConfig, shapes: Shapes, artifacts: Path, folder: Path, memory: PeakMemory, watch: Stopwatch
) -> Row:
    """Distill from nothing into `folder`: load weights, encode, cluster, generate, write.

    Args:
        artifacts: where exported networks are.
        watch: a new one, which gets the seconds of the run's stages and queues.
    """
    memory.reset()
    start = time.perf_counter()
    job = prepare(config, artifacts=artifacts)
    summary = distill(job, folder / "run", folder / "artifacts", watch, Progress(quiet=True))
    taken = time.perf_counter() - start
    made, flops = summary["images"], run_flops(job, shapes)
    seconds, waits = dict(watch.seconds), dict(watch.waits)
    return Row("distill", job.config.engine, made, flops, None, (taken,), memory.bytes(), seconds, waits)


def run_flops(job: Job, shapes: Shapes) -> int:
    """Of all networks over a whole run; what batches are padded with is not counted."""
    parts, config, classes = shapes.parts, job.config, len(job.source.classes)
    guided = config.guidance > 1 and not job.model.embeds_guidance
    image = calls_per_image(job) * (1 + guided) * parts["unet"].flops + parts["vae_decoder"].flops
    text = (classes + guided) * parts["text_encoder"].flops
    return len(job.source.items) * parts["vae_encoder"].flops + classes * config.ipc * image + text


def calls_per_image(job: Job) -> int:
    """Of the UNet."""
    return len(job.schedule.steps)
