"""One stage, one engine, one batch: called until there is enough to say how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """Something to measure.

    Attributes:
        batch: images per call.
        flops: of one call; None for work that is not counted in them.
        call: does it; its number, from 0 for the warm-up, is for work that must differ from call to call.
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
    """A task, measured.

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
        """At the median latency."""
        return self.batch / float(np.median(self.latencies))

    @property
    def gflops(self) -> float | None:
        """GFLOP/s at the median latency."""
        return None if self.flops is None else self.flops / float(np.median(self.latencies)) / 1e9

    def to_json(self, peak: float) -> dict[str, Any]:
        """As `calibrate.read_profile` reads it; `peak` in GFLOP/s."""
        percentiles = np.percentile(self.latencies, PERCENTILES)
        gflops = self.gflops
        record = {
            "engine": self.engine,
            "batch": self.batch,
            "images_per_second": self.images_per_second,
            "latency_seconds": {f"p{p}": float(x) for p, x in zip(PERCENTILES, percentiles, strict=True)},
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
        warmup = time_call(lambda: task.call(0), device)
    seconds, repeats = least
    latencies: list[float] = []
    while len(latencies) < repeats or sum(latencies) < seconds:
        number = 1 + len(latencies)
        with watch(task.name):
            latencies.append(time_call(lambda number=number: task.call(number), device))  # type: ignore[misc]
    return Row(
        task.stage, task.engine, task.batch, task.flops, warmup, tuple(latencies), memory.bytes(), seconds={}, waits={}
    )
