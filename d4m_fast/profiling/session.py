"""A profile: the requested engines are opened and checked, then measured row by row."""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from d4m_fast import __version__
from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.profile import NETWORK_STAGES, STAGES, ProfileConfig
from d4m_fast.engine.artifacts import versions
from d4m_fast.engine.runtime import hardware, marks
from d4m_fast.flow.stopwatch import Event, Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.job import Job, prepare
from d4m_fast.measure.flops import Shapes, trace_model
from d4m_fast.measure.memory import PeakMemory
from d4m_fast.measure.peak import LONG_ENOUGH, Peak, measure_peak
from d4m_fast.profiling.measure import Row, Task, measure
from d4m_fast.profiling.stages import cluster_task, network_tasks, write_tasks
from d4m_fast.profiling.whole_run import calls_per_image, time_run, write_class_folders
from d4m_fast.storage import files

LIBRARIES = ("torch", "diffusers", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt-cu13")


@dataclass
class Session:
    """A checked request and, once `run` has been run through, all rows of the profile.

    Attributes:
        jobs: one per engine.
        artifacts: where exported networks are; files are written below it, too, and removed.
        peak: of matrix product and convolution, the best of before and after the rows.
        events: for a trace.
    """

    request: ProfileConfig
    jobs: Sequence[Job]
    artifacts: Path
    rows: list[Row] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    peak: Peak = field(default_factory=lambda: Peak(0.0, 0.0))

    @property
    def device(self) -> torch.device:
        return self.jobs[0].device

    @cached_property
    def memory(self) -> PeakMemory:
        return PeakMemory(self.device)

    @cached_property
    def shapes(self) -> Shapes:
        return trace_model(str(self.jobs[0].model.path), self.jobs[0].resolution)

    def run(self) -> Stream[Row]:
        """Measure, row by row."""

        def items() -> Iterator[Row]:
            watch = self._watch()
            # Before and after the rows: the better one counts, as other work may have slowed either.
            self._measure_peak(watch)
            with tempfile.TemporaryDirectory(dir=files.make_directory(self.artifacts), prefix="profile-") as folder:
                for row in self._rows(Path(folder), watch):
                    self.rows.append(row)
                    yield row
            self._measure_peak(watch)
            self.events += watch.events

        stages, batches, engines = set(self.request.stages), len(self.request.batches), len(self.jobs)
        networks = engines * batches * len(NETWORK_STAGES & stages)
        count = networks + ("kmeans" in stages) + batches * ("write" in stages) + engines * ("distill" in stages)
        return Stream(count, items())

    def to_json(self) -> dict[str, Any]:
        """Return what `d4m-fast profile --json` prints and `plan --calibrate` reads: GFLOP/s, seconds, bytes."""
        job = self.jobs[0]
        stages = {}
        for stage in STAGES:
            records = [row.to_json(self.peak.best) for row in self.rows if row.stage == stage]
            if records:
                stages[stage] = records
        return {
            "d4m-fast": __version__,
            "machine": machine(self.device),
            "model": self.request.model,
            "model_sha256": job.model.sha256,
            "data": self.request.data,
            "resolution": job.resolution,
            "precision": job.config.precision,
            "unet_calls_per_image": calls_per_image(job),
            "peak_bytes_of": self.memory.of,
            "peak": {"matrix_product_gflops": self.peak.matrix_product, "convolution_gflops": self.peak.convolution},
            "stages": stages,
        }

    def _watch(self) -> Stopwatch:
        return Stopwatch(trace=True, mark=marks(self.device))

    def _measure_peak(self, watch: Stopwatch) -> None:
        with watch("peak"):
            peak = measure_peak(self.device, self.jobs[0].dtype, min(LONG_ENOUGH, self.request.seconds))
        self.peak = self.peak.or_better(peak)

    def _rows(self, folder: Path, watch: Stopwatch) -> Iterator[Row]:
        least = self.request.seconds, self.request.repeats
        for task in self._tasks(folder):
            yield measure(task, self.device, self.memory, watch, least)
        if "distill" in self.request.stages:
            data = folder / "data"
            ipc = write_class_folders(self.jobs[0].source, self.request.images, data)
            for job in self.jobs:
                yield self._distill(job, data, ipc, folder / f"run-{job.config.engine}")

    def _tasks(self, folder: Path) -> Iterator[Task]:
        stages, batches = self.request.stages, self.request.batches
        for job in self.jobs:
            job.import_libraries()  # so that no stage's time has it
            networks = job.open_networks()
            yield from network_tasks(job, networks, self.shapes, stages, batches)
            # k-means runs on no engine: once, on latents of the last.
            if job is self.jobs[-1] and "kmeans" in stages:
                yield cluster_task(job, networks, self.request.images)
        if "write" in stages:
            yield from write_tasks(self.jobs[0], batches, folder)

    def _distill(self, job: Job, data: Path, ipc: int, folder: Path) -> Row:
        watch = self._watch()  # of its own: the row has the seconds of this run's stages alone
        config = dataclasses.replace(_config(self.request, job.config.engine), data=str(data), ipc=ipc)
        row = time_run(config, self.shapes, self.artifacts, folder, self.memory, watch)
        self.events += watch.events
        return row


def open_session(request: ProfileConfig, artifacts: Path) -> Session:
    """Open model, data and engines.

    Raises:
        D4MError: the first thing that is wrong.
    """
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    jobs: dict[str, Job] = {}
    for engine in request.engines:
        job = prepare(_config(request, engine), artifacts=artifacts)
        jobs.setdefault(job.config.engine, job)  # "auto" may be one that is named, too
    return Session(request, tuple(jobs.values()), artifacts)


def machine(device: torch.device) -> dict[str, Any]:
    """Machine and versions that the figures are true of."""
    return {
        "device": hardware(device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": versions(*LIBRARIES),
    }


def _config(request: ProfileConfig, engine: Any) -> DistillConfig:
    return DistillConfig(
        allow_unknown_prompts=True,  # what an image shows changes no speed
        data=request.data,
        model=request.model,
        ipc=1,  # what any data has enough images for; `_distill` sets its own
        engine=engine,
        precision=request.precision,
        device=request.device,
        threads=request.threads,
    )
