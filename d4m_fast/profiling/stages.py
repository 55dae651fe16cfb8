"""Stages of a run as single calls, with inputs of their real shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from d4m_fast.config.profile import HOST, NETWORK_STAGES, Stage
from d4m_fast.engine.encode import from_bytes
from d4m_fast.engine.networks import Networks
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.job import Job
from d4m_fast.kernels.kmeans import kmeans
from d4m_fast.measure.calls import NETWORK_OF, NetworkStage, network_call
from d4m_fast.measure.flops import Shapes
from d4m_fast.profiling.measure import Task
from d4m_fast.runs.claims import OwnGroups
from d4m_fast.runs.plan import ENCODE_BATCH, Group, Plan
from d4m_fast.runs.records import Sample
from d4m_fast.runs.run import RunDirectory
from d4m_fast.sources.records import ClassInfo, Item, by_class

POINTS_PER_PROTOTYPE = 10  # of the k-means stage
Call = Callable[[int], object]


def network_tasks(
    job: Job, networks: Networks, shapes: Shapes, stages: Sequence[Stage], batches: Sequence[int]
) -> Iterator[Task]:
    """Yield each network on each batch: from the host's memory and back where the pipeline goes there and back.

    The UNet's call is a guided one, two samples per image; a distilled image takes as many as its schedule has steps.
    """
    makers: dict[Stage, tuple[Callable[[Job, Networks, int], Call], int]] = {
        "encode": (partial(_image_call, stage="encode"), shapes.networks["vae_encoder"].flops),
        "text": (_text_call, shapes.networks["text_encoder"].flops),
        # Guided: two samples per image.
        "unet": (partial(_image_call, stage="unet"), 2 * shapes.networks["unet"].flops),
        "decode": (partial(_image_call, stage="decode"), shapes.networks["vae_decoder"].flops),
    }
    for stage in stages:
        if stage in NETWORK_STAGES:
            make, flops = makers[stage]
            for batch in sorted(batches):
                yield Task(stage, job.config.engine, batch, batch * flops, make(job, networks, batch))


def _text_call(job: Job, networks: Networks, batch: int) -> Call:
    classes = islice(cycle(job.source.classes), batch)
    prompts = [class_info.prompt for class_info in classes]
    return lambda _: networks.text_encoder(prompts)


def _image_call(job: Job, networks: Networks, batch: int, stage: NetworkStage) -> Call:
    """Return a call from the host's memory and back; the UNet's tensors stay on the device, as they do in a run."""
    stays_on_device = stage == "unet"
    device = networks.runtime(NETWORK_OF[stage]).device if stage != "encode" else torch.device("cpu")
    sizes, guidance = job.model.sizes(job.resolution), job.config.guidance
    call = network_call(stage, networks, sizes, batch, guidance=guidance, inputs_on=device)
    return lambda _: call() if stays_on_device else call().float().cpu()


def cluster_task(job: Job, networks: Networks, images: int) -> Task:
    """Return k-means of up to `images` real latents of the first class; a prototype for every ten of them."""
    class_info = job.source.classes[0]
    items = by_class(job.source.items)[class_info.id][:images]
    batches = []
    with torch.inference_mode():
        for start in range(0, len(items), ENCODE_BATCH):
            images_of_batch = [_pixels(job, item, job.resolution) for item in items[start : start + ENCODE_BATCH]]
            means, _ = networks.vae_encoder(from_bytes(torch.from_numpy(np.stack(images_of_batch))))
            batches.append(means.float().cpu())
    points = torch.cat(batches).flatten(1).numpy().astype(np.float16)  # the type that a run stores them in
    k = max(1, len(points) // POINTS_PER_PROTOTYPE)
    return Task("kmeans", HOST, len(points), None, lambda _: kmeans([points], k, ids=[class_info.id], method="auto"))


def write_tasks(job: Job, batches: Sequence[int], folder: Path) -> Iterator[Task]:
    """Yield groups of images, written and committed as a run writes them, below `folder`."""
    for batch in sorted(batches):
        path = folder / f"write-{batch}"
        path.mkdir()
        run = RunDirectory(path, {})
        run.begin()
        items = islice(cycle(job.source.items), batch)
        pixels = [_pixels(job, item, job.image_size) for item in items]
        yield Task("write", HOST, batch, None, _write_call(run, pixels))


def _write_call(run: RunDirectory, pixels: Sequence[np.ndarray]) -> Call:
    def call(number: int) -> None:
        # A class of its own for each call: a run commits a group once.
        class_info = ClassInfo(number, f"{number:05d}", "")
        samples = [Sample(class_info, i, i, 1, 0.0, "", image) for i, image in enumerate(pixels)]
        group = Group(number, (number,), len(samples), len(samples))
        plan, claims = Plan(ENCODE_BATCH, 1, (group,), {}), OwnGroups([group])
        with Workers(Stopwatch()) as workers:
            for _ in run.write(Stream(len(samples), samples), plan, claims, lambda _: len(samples), "png", workers):
                pass

    return call


def _pixels(job: Job, item: Item, side: int) -> np.ndarray:
    """Return an image as (side, side, 3) uint8."""
    return np.array(job.source.read(item).resize((side, side), Image.Resampling.BICUBIC))
