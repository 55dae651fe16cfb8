"""Batch sizes of a run that starts: what fits in memory and, where a run is long enough to pay for it, the fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from d4m_fast.engine.memory import fitting, free_memory, release
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.schedule import Schedule
from d4m_fast.errors import OutOfMemoryError
from d4m_fast.job import Job
from d4m_fast.measure.calls import NetworkStage, network_call
from d4m_fast.measure.clock import time_call
from d4m_fast.measure.flops import most_activations, trace_model
from d4m_fast.measure.sweep import Point, best_rate, sweep
from d4m_fast.planning.cost import most_images
from d4m_fast.runs.plan import ENCODE_BATCH, GENERATE_BATCH, Batches

SMALLEST, LARGEST = 8, 512
CALLS = 3  # per candidate; the first warms up
PART = 0.03  # of a stage's calls, which its probe may cost at most
ROOM = 0.8  # of the free memory, the rest for copies and fragments
LEVEL = 0.98  # of the best speed: among batches as good, the smallest
HOPELESS = 0.9  # of the best speed: nothing larger is tried


@dataclass(frozen=True)
class Stage:
    """One network's work in a run.

    Attributes:
        images: of the whole run; `calls` of the network for each.
        usual: images per call where nothing is probed.
        fits: images per call that memory allows, by the traced network; 0 where it allows none.
        surely: images per call that fit by a rough bound, which costs nothing to know.
        call: run the network on so many images and wait for it.
    """

    images: int
    calls: int
    usual: int
    fits: Callable[[], int]
    surely: int
    call: Callable[[int], object]


def choose_batches(job: Job, networks: Networks, schedule: Schedule, encoded_with: int | None) -> Batches:
    """The batch sizes of a run that starts.

    Args:
        encoded_with: images per batch of latents that are there already, which then are used.
    """
    shapes = cache(partial(trace_model, str(job.model.path), job.resolution))
    free, size = ROOM * free_memory(job.device), job.dtype.itemsize
    made, halves = len(job.source.classes) * job.config.ipc, 2 if networks.unet.doubles(job.config.guidance) else 1
    rough = free / size / most_activations(job.model.path, job.resolution)

    def stage(part: str, images: int, calls: int, usual: int, rows: int, call: Callable[[int], object]) -> Stage:
        def fits() -> int:
            return int(most_images(shapes().parts[part], rows, size, free - size * shapes().parameters))

        return Stage(images, calls, usual, fits, int(rough / rows), call)

    call = partial(_call, job, networks)
    encode = stage("vae_encoder", len(job.source.items), 1, ENCODE_BATCH, 1, call("encode"))
    unet = stage("unet", made, len(schedule.steps), GENERATE_BATCH, halves, call("unet"))
    decode = stage("vae_decoder", made, 1, GENERATE_BATCH, 1, call("decode"))
    given = job.config.batch_size
    encoding = _chosen(encode) if encoded_with is None else (encoded_with, {"by": "latents that are there"})
    generation = _chosen(unet) if given == "auto" else (given, {"by": "--batch-size"})
    decoding = _chosen(decode) if given == "auto" else (_within(given, decode), {"by": "--batch-size"})
    release(job.device)
    why = {"encode_batch": encoding[1], "batch_size": generation[1], "decode_batch": decoding[1]}
    return Batches(encoding[0], generation[0], decoding[0], why)


def _chosen(stage: Stage) -> tuple[int, dict[str, Any]]:
    """Images per call, and why."""
    candidates = affordable(stage)
    if not candidates:
        batch = _within(stage.usual, stage)
        return batch, {"by": "default" if batch == stage.usual else "memory"}
    started = time.perf_counter()
    speeds = {point.batch: point.rate for point in _measured(stage, candidates) if point.seconds is not None}
    spent = time.perf_counter() - started
    why = {"by": "probe", "images_per_second": {str(b): round(x, 3) for b, x in speeds.items()}}
    return fastest(speeds), {**why, "fits": stage.fits(), "seconds": round(spent, 3)}


def _within(batch: int, stage: Stage) -> int:
    """As much of a batch as memory allows."""
    return batch if batch <= stage.surely else max(1, min(batch, stage.fits()))


def affordable(stage: Stage) -> list[int]:
    """What a probe may try: powers of two, as many as cost little; none if those do not reach the usual batch."""
    left, candidates, batch = PART * stage.images * stage.calls, list[int](), SMALLEST
    while batch <= min(stage.images, LARGEST) and (left := left - CALLS * batch) >= 0:
        candidates.append(batch)
        batch *= 2
    return [b for b in candidates if b <= stage.fits()] if batch > min(stage.usual, stage.images) else []


def fastest(speeds: dict[int, float]) -> int:
    """The smallest batch that is about as fast as the fastest; 1 if not even the first could be run."""
    good = [batch for batch, speed in speeds.items() if speed >= LEVEL * max(speeds.values())]
    return min(good, default=1)


def _measured(stage: Stage, candidates: list[int]) -> Iterator[Point]:
    """Each batch, until one is too slow or does not fit."""

    def measure(batch: int) -> Point:
        try:
            # The least of several: the first one warms up.
            return Point(batch, min(_seconds(stage.call, batch) for _ in range(CALLS)))
        except OutOfMemoryError as error:
            return Point(batch, None, str(error))

    return sweep(candidates, measure, lambda points: points[-1].rate < HOPELESS * best_rate(points))


def _seconds(call: Callable[[int], object], batch: int) -> float:
    return time_call(partial(call, batch), torch.device("cpu"))  # the call itself waits for the device


def _call(job: Job, networks: Networks, stage: NetworkStage) -> Callable[[int], object]:
    """The stage's network on so many images; reading one number back waits for the device."""

    @torch.inference_mode()
    def call(batch: int) -> object:
        sizes, guidance = job.model.sizes(job.resolution), job.config.guidance
        run = network_call(stage, networks, sizes, batch, guidance=guidance, inputs_on=job.device)
        with fitting("denoise" if stage == "unet" else stage):
            return run().flatten()[0].item()

    return call
