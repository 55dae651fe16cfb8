"""Batch sizes of a new run: as large as memory allows and, where the run is long enough to pay for it, the fastest."""

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
from d4m_fast.measure.clock import Call, time_call
from d4m_fast.measure.flops import most_activations, trace_model
from d4m_fast.measure.sweep import Point, best_rate, sweep
from d4m_fast.planning.cost import most_images
from d4m_fast.runs.plan import ENCODE_BATCH, GENERATE_BATCH, Batches

SMALLEST, LARGEST = 8, 512
CALLS = 3  # per candidate; the first warms up
PROBE_SHARE = 0.03  # of a stage's calls, which its probe may cost at most
MEMORY_SHARE = 0.8  # of the free memory, the rest for copies and fragments
LEVEL = 0.98  # of the best speed: among batches as good, the smallest
HOPELESS = 0.9  # of the best speed: nothing larger is tried


@dataclass(frozen=True)
class Stage:
    """A network's work in a run.

    Attributes:
        images: of the whole run; `calls` of the network for each.
        default_batch: images per call where nothing is probed.
        count_fitting: counts the images per call that memory allows, by the traced network; 0 where it allows none.
        surely_fitting: images per call that fit by a rough bound, which costs nothing to know.
        open_call: makes inputs for so many images; what it returns runs the network on them and waits for it.
    """

    images: int
    calls: int
    default_batch: int
    count_fitting: Callable[[], int]
    surely_fitting: int
    open_call: Callable[[int], Call]


def choose_batches(
    job: Job, networks: Networks, schedule: Schedule, encoded_with: int | None, *, probe: bool = True
) -> Batches:
    """Choose the batch sizes of a new run.

    Args:
        encoded_with: images per batch of latents that are there already, which then are used.
        probe: False where machines that cannot agree are to choose the same.
    """
    # Tracing takes seconds, and a short run on small batches gets by without.
    shapes = cache(partial(trace_model, str(job.model.path), job.resolution))
    free, size = MEMORY_SHARE * free_memory(job.device), job.dtype.itemsize
    images, rows = len(job.source.classes) * job.config.ipc, 2 if networks.unet.doubles(job.config.guidance) else 1
    rough_bound = free / size / most_activations(job.model.path, job.resolution)

    def stage(
        network: str, images: int, calls: int, default_batch: int, rows: int, open_call: Callable[[int], Call]
    ) -> Stage:
        def count_fitting() -> int:
            return int(most_images(shapes().networks[network], rows, size, free - size * shapes().parameters))

        return Stage(images, calls, default_batch, count_fitting, int(rough_bound / rows), open_call)

    opener = partial(_opener, job, networks)
    encode = stage("vae_encoder", len(job.source.items), 1, ENCODE_BATCH, 1, opener("encode"))
    unet = stage("unet", images, len(schedule.steps), GENERATE_BATCH, rows, opener("unet"))
    decode = stage("vae_decoder", images, 1, GENERATE_BATCH, 1, opener("decode"))
    encoding = _choose(encode, probe) if encoded_with is None else (encoded_with, {"by": "latents that are there"})
    requested = job.config.batch_size
    if requested == "auto":
        generation, decoding = _choose(unet, probe), _choose(decode, probe)
    else:
        generation = (requested, {"by": "--batch-size"})
        decoding = (_cut_to_memory(requested, decode), {"by": "--batch-size"})
    release(job.device)  # what the probes took
    reasons = {"encode_batch": encoding[1], "batch_size": generation[1], "decode_batch": decoding[1]}
    return Batches(encoding[0], generation[0], decoding[0], reasons)


def _choose(stage: Stage, probe: bool = True) -> tuple[int, dict[str, Any]]:
    """Return images per call, and why."""
    candidates = affordable(stage) if probe else []
    if not candidates:
        batch = _cut_to_memory(stage.default_batch, stage)
        return batch, {"by": "default" if batch == stage.default_batch else "memory"}
    start = time.perf_counter()
    speeds = {}
    for point in _probe(stage, candidates):
        if point.seconds is not None:
            speeds[point.batch] = point.rate
    seconds = round(time.perf_counter() - start, 3)
    rates = {str(batch): round(rate, 3) for batch, rate in speeds.items()}
    reason = {"by": "probe", "images_per_second": rates, "fits": stage.count_fitting(), "seconds": seconds}
    return fastest(speeds), reason


def _cut_to_memory(batch: int, stage: Stage) -> int:
    return batch if batch <= stage.surely_fitting else max(1, min(batch, stage.count_fitting()))


def affordable(stage: Stage) -> list[int]:
    """Return the batches a probe may try: powers of two, as many as cost little.

    There are none if those do not reach the default batch.
    """
    budget, candidates, batch = PROBE_SHARE * stage.images * stage.calls, list[int](), SMALLEST
    while batch <= min(stage.images, LARGEST):
        budget -= CALLS * batch
        if budget < 0:
            break
        candidates.append(batch)
        batch *= 2
    if batch <= min(stage.default_batch, stage.images):
        return []
    fitting_batch = stage.count_fitting() if candidates else 0
    return [candidate for candidate in candidates if candidate <= fitting_batch]


def fastest(speeds: dict[int, float]) -> int:
    """Return the smallest batch that is about as fast as the fastest; 1 if not even the first could be run."""
    near_best = [batch for batch, speed in speeds.items() if speed >= LEVEL * max(speeds.values())]
    return min(near_best, default=1)


def _probe(stage: Stage, candidates: list[int]) -> Iterator[Point]:
    """Time each batch, until one is too slow or does not fit."""

    def measure(batch: int) -> Point:
        try:
            call = stage.open_call(batch)
            # The least of several: the first one warms up. The call itself waits for the device.
            return Point(batch, min(time_call(call, torch.device("cpu")) for _ in range(CALLS)))
        except OutOfMemoryError as error:
            return Point(batch, None, str(error))

    return sweep(candidates, measure, lambda points: points[-1].rate < HOPELESS * best_rate(points))


def _opener(job: Job, networks: Networks, stage: NetworkStage) -> Callable[[int], Call]:
    """Return what opens the stage's network on so many images; a call reads one number back, to wait for the device."""
    sizes, guidance = job.model.sizes(job.resolution), job.config.guidance
    counted_as = "denoise" if stage == "unet" else stage

    def open_call(batch: int) -> Call:
        with fitting(counted_as):
            run = network_call(stage, networks, sizes, batch, guidance=guidance, inputs_on=job.device)

        @torch.inference_mode()
        def call() -> object:
            with fitting(counted_as):
                return run().flatten()[0].item()

        return call

    return open_call
