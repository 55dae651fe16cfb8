"""Distillation on one page: encode, cluster, generate, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from d4m_fast.console import Progress
from d4m_fast.engine.encode import encode
from d4m_fast.engine.generate import generate
from d4m_fast.engine.memory import release
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.prototypes import cluster, image_counts
from d4m_fast.errors import OutOfMemoryError
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.workers import Workers
from d4m_fast.job import Job
from d4m_fast.planning.batches import choose_batches
from d4m_fast.runs.latents import LatentStore
from d4m_fast.runs.plan import Group, Plan, make_plan
from d4m_fast.runs.run import RunDirectory
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked


def distill(job: Job, path: Path, artifacts: Path, watch: Stopwatch, progress: Progress) -> dict[str, Any]:
    """Do what is missing of a run, and return its summary.

    Args:
        path: of the run directory.
        artifacts: where latents are kept.

    Raises:
        D4MError: why the run cannot go on; what is committed stays.
    """
    with locked(files.make_directory(path)):
        run = RunDirectory(path, job.identity)
        summary = run.finished()
        if summary is not None:
            return summary
        return _Distillation(job, run, artifacts, watch, progress).finish()


@dataclass(frozen=True)
class _Distillation:
    """The part of a run that one process does."""

    job: Job
    run: RunDirectory
    artifacts: Path
    watch: Stopwatch
    progress: Progress

    def finish(self) -> dict[str, Any]:
        plan, networks = self._open_plan()
        latents = self._latents(plan, networks)
        while groups := plan.without(self.run.committed(plan)):
            try:
                self._generate(plan, groups, latents, networks)
            except OutOfMemoryError as error:
                plan = plan.with_smaller_batch(error, self.run.committed(plan))
                self.run.save_plan(plan)
                self.progress.say(f"{error}; going on with batches of {plan.out_of_memory[-1]['now']}")
            release(self.job.device)
        return self.run.finish(plan, latents.failures, latents.first_frames, self.watch)

    def _open_plan(self) -> tuple[Plan, Networks]:
        """Return the saved plan of a run, or a new one, saved; and the networks, opened with its threads."""
        plan = self.run.saved_plan()
        # A run that goes on has the threads it was begun with, on any machine: they are part of what fixes the bytes.
        torch.set_num_threads(self.job.threads if plan is None else plan.threads)
        with self.watch("import"):
            self.job.import_libraries()
        with self.watch("open"):
            networks = self.job.open_networks()
        self.run.begin()  # only now: a model that cannot be opened leaves no run behind
        if plan is None:
            with self.watch("plan"):
                plan = self._new_plan(networks)
        return plan, networks

    def _new_plan(self, networks: Networks) -> Plan:
        job = self.job
        batches = choose_batches(job, networks, job.schedule, job.encoded_with(self.artifacts))
        latents = job.latents_path(self.artifacts, batches.encode, job.threads).name
        class_ids = [class_info.id for class_info in job.source.classes]
        plan = replace(make_plan(class_ids, job.config.ipc, batches, threads=job.threads), latents=latents)
        self.run.save_plan(plan)
        return plan

    def _latents(self, plan: Plan, networks: Networks) -> LatentStore:
        """Return the latents of the source: from the artifacts, or encoded now as far as they are missing."""
        job = self.job
        made_by = job.latents_made_by(plan.encode_batch, plan.threads)
        path = files.make_directory(job.latents_path(self.artifacts, plan.encode_batch, plan.threads))
        with locked(path):
            latents = LatentStore(path, made_by, job.source.items, job.latent_shape)
            while not latents.complete:
                try:
                    self._encode(latents, networks)
                except OutOfMemoryError as error:
                    latents.halve_batch(error)
                    self.progress.say(f"{error}; going on with batches of {latents.batch}")
                release(job.device)
        latents.check_budget(job.config.max_bad_fraction)
        return latents

    def _encode(self, latents: LatentStore, networks: Networks) -> None:
        """Encode what is missing of the latents, in one pass over the source."""
        with Workers(self.watch) as workers:
            batches = encode(
                self.job.source,
                networks.vae_encoder,
                resolution=self.job.resolution,
                draw=self.job.latent_shape if self.job.config.latent == "sample" else None,
                batch=latents.batch,
                workers=workers,
                start=latents.position,
            )
            self.progress.follow("encode", latents.fill(batches, workers).watched(self.watch, "encode"))

    def _generate(self, plan: Plan, groups: Sequence[Group], latents: LatentStore, networks: Networks) -> None:
        """Make and write the images of the groups that are not committed yet."""
        job = self.job
        with Workers(self.watch) as workers:
            classes = job.classes_of(groups)
            prototypes = cluster(classes, latents, job.source, job.config)
            counts = image_counts(classes, latents, job.config)
            samples = generate(
                self.run.save_prototypes(prototypes.watched(self.watch, "cluster")),
                groups,
                networks,
                job.schedule,
                job.config,
                image_size=job.image_size,
                workers=workers,
                watch=self.watch,
                counts=counts,
            )
            written = self.run.write(samples, plan, groups, job.config.format, workers, counts)
            self.progress.follow("distill", written)
