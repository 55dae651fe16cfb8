"""Measurement of one stage, engine and batch, called until its time is known well enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from d4m_fast.config.profile import Stage
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.measure.clock import time_call
from d4m_fast.measure.memory import PeakMemory

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Task:
    """Work of one stage on one engine, to be timed.

    Attributes:
        batch: images per call.
        flops: of one call; None for work that is not counted in them.
        call: does the work; takes its number, 0 for the warm-up, for work that must differ from call to call.
    """

    stage: Stage
    engine: str
    batch: int
    flops: int | None
    call: Callable[[int], object]

    @property
    def name(self) -> str:
        return f"{self.stage} {self.engine} x{self.batch}"


@dataclass(frozen=True, slots=True)
class Row:
    """Times and memory of a task.

    Attributes:
        warmup: seconds of the first call, which is in nothing else here; None if it was not called in vain.
        latencies: seconds of every other call.
        peak_bytes: as `PeakMemory` has it, over all calls.
        seconds, waits: of a whole run's stages and queues; empty for others.
    """

    stage: Stage
    engine: str
    batch: int
    flops: int | None
    warmup: float | None
    latencies: tuple[float, ...]
    peak_bytes: int
    seconds: dict[str, float]
    waits: dict[str, float]

    @property
    def images_per_second(self) -> float:
        """Images per second at the median latency."""
        return self.batch / float(np.median(self.latencies))

    @property
    def gflops(self) -> float | None:
        """GFLOP/s at the median latency."""
        return None if self.flops is None else self.flops / float(np.median(self.latencies)) / 1e9

    def to_json(self, peak: float) -> dict[str, Any]:
        """Return the record that `calibrate.read_profile` reads; `peak` is in GFLOP/s."""
        latency_seconds = {}
        for percentile, seconds in zip(PERCENTILES, np.percentile(self.latencies, PERCENTILES), strict=True):
            latency_seconds[f"p{percentile}"] = float(seconds)
        gflops = self.gflops
        record = {
            "engine": self.engine,
            "batch": self.batch,
            "images_per_second": self.images_per_second,
            "latency_seconds": latency_seconds,
            "repeats": len(self.latencies),
            "warmup_seconds": self.warmup,
            "peak_bytes": self.peak_bytes,
            "gflops": gflops,
            "share_of_peak": None if gflops is None else gflops / peak,
        }
        return {**record, "seconds": self.seconds, "waits": self.waits} if self.seconds else record


@torch.inference_mode()
def measure(task: Task, device: torch.device, memory: PeakMemory, watch: Stopwatch, least: tuple[float, int]) -> Row:
    """Warm up, then call until `least` seconds and calls are reached."""
    memory.reset()
    with watch(f"{task.name}, warm-up"):
        # Compiles and fills caches, so that it counts apart.
        warmup = time_call(partial(task.call, 0), device)
    seconds, repeats = least
    latencies: list[float] = []
    while len(latencies) < repeats or sum(latencies) < seconds:
        number = 1 + len(latencies)
        with watch(task.name):
            latencies.append(time_call(partial(task.call, number), device))
    peak_bytes = memory.bytes()
    return Row(
        task.stage, task.engine, task.batch, task.flops, warmup, tuple(latencies), peak_bytes, seconds={}, waits={}
    )
