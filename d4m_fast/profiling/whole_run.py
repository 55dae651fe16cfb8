"""A small run from end to end, by the code that `distill` runs."""

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
IMAGES_PER_PROTOTYPE = 4  # so that there is something to cluster


def write_class_folders(source: Source, images: int, folder: Path) -> int:
    """Write at most `images` of a source as class folders of PNG files, up to 16 of each of its first classes.

    Returns:
        Prototypes per class that these are enough for.
    """
    grouped = by_class(source.items)
    per_class = min(images, IMAGES_PER_CLASS, *(len(items) for items in grouped.values()))
    for class_info in source.classes[: images // per_class]:
        class_folder = folder / class_info.folder
        class_folder.mkdir(parents=True)
        for item in grouped[class_info.id][:per_class]:
            source.read(item).save(class_folder / f"{item.rank:05d}.png")
    return max(1, per_class // IMAGES_PER_PROTOTYPE)


def time_run(
    config: DistillConfig, shapes: Shapes, artifacts: Path, folder: Path, memory: PeakMemory, watch: Stopwatch
) -> Row:
    """Distill from nothing into `folder`: load weights, encode, cluster, generate, write.

    Args:
        artifacts: where exported networks are.
        watch: a new one, which gets the seconds of the run's stages and queues.
    """
    memory.reset()
    start = time.perf_counter()
    # Latents go to artifacts of their own: where they are kept already, nothing would be encoded.
    job = prepare(config, artifacts=artifacts)
    summary = distill(job, folder / "run", folder / "artifacts", watch, Progress(quiet=True))
    latency = time.perf_counter() - start
    images, flops = summary["images"], run_flops(job, shapes)
    seconds, waits = dict(watch.seconds), dict(watch.waits)
    return Row("distill", job.config.engine, images, flops, None, (latency,), memory.bytes(), seconds, waits)


def run_flops(job: Job, shapes: Shapes) -> int:
    """Return the FLOP of all networks over a run; padding of batches is not counted."""
    networks, classes = shapes.networks, len(job.source.classes)
    guided_calls = 0 if job.model.embeds_guidance else job.schedule.guided_calls(job.config.guidance)
    samples = calls_per_image(job) + guided_calls  # a guided call computes two
    per_image = samples * networks["unet"].flops + networks["vae_decoder"].flops
    prompts = classes + (guided_calls > 0)  # and the negative one
    encoding = len(job.source.items) * networks["vae_encoder"].flops
    return encoding + classes * job.config.ipc * per_image + prompts * networks["text_encoder"].flops


def calls_per_image(job: Job) -> int:
    """Count the UNet calls of the job's own schedule."""
    return len(job.schedule.steps)
