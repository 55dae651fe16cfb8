"""Distillation on one page: encode, cluster, generate, write.

Any number of processes do this side by side on one run directory. Each takes what nobody else works on: ranges of the
source to encode, then groups of classes to generate. The run's lock is held to begin, to plan and to finish only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from d4m_fast.engine.encode import encode
from d4m_fast.engine.memory import release
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.prototypes import Clustering, require_usable
from d4m_fast.errors import UNFORESEEN, D4MError, OutOfMemoryError, SetAsideError
from d4m_fast.flow.progress import Listener
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.generation import Generation
from d4m_fast.job import Job
from d4m_fast.planning.batches import choose_batches
from d4m_fast.runs.claims import GroupClaims, UnitClaims, failures_of
from d4m_fast.runs.latents import EncodedBatch, LatentStore
from d4m_fast.runs.place import Place
from d4m_fast.runs.plan import Plan, make_plan
from d4m_fast.runs.run import RunDirectory
from d4m_fast.runs.shards import LeftOut, Shard, ShardRecord, all_records, combined, shard_summary
from d4m_fast.storage import files
from d4m_fast.storage.leases import Pulse, Timing
from d4m_fast.storage.locks import locked


def distill(
    job: Job,
    path: Path,
    artifacts: Path,
    watch: Stopwatch,
    progress: Listener,
    timing: Timing | None = None,
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Do what is missing of a run in this process, beside any others that work on it, and return its summary.

    Args:
        path: of the run directory.
        artifacts: where latents are kept.
        timing: of the signs of life that processes give each other.
        shard: the part of the run to make; None is all of it.

    Raises:
        D4MError: why the run cannot go on; what is committed stays.
    """
    place = Place(path, artifacts, Timing() if timing is None else timing, shard=shard)
    run, summary = open_run(job, place)
    if summary is not None:
        return summary
    work(job, place, run, watch, progress)
    return finish(job, place, watch)


def open_run(job: Job, place: Place) -> tuple[RunDirectory, dict[str, Any] | None]:
    """Look through a run, and return it, with its summary if it, or the shard of it that is asked for, is finished."""
    with place.locked():
        run = RunDirectory(place.path, job.identity)
        summary = run.finished()
        if summary is None and place.shard is not None:
            summary = _finished_shard(run, place.shard)
        return run, summary


def _finished_shard(run: RunDirectory, shard: Shard) -> dict[str, Any] | None:
    plan, record = run.saved_plan(), ShardRecord.read(shard.file(run.path), run.fingerprint)
    if plan is None or record is None or any(group.id not in run.committed(plan) for group in shard.groups(plan)):
        return None
    return shard_summary(run, shard, plan, record)


def finish(job: Job, place: Place, watch: Stopwatch) -> dict[str, Any]:
    """Derive what a finished run has beside its images, unless another process has, and return its summary.

    Of a shard it is kept what it left out; the last shard in a directory finishes the run.

    Raises:
        SetAsideError: not all of its groups could be made.
    """
    with place.locked():
        run = RunDirectory(place.path, job.identity)
        summary, plan = run.saved_summary(), run.require_plan()
        if summary is not None:
            return summary
        committed = run.committed(plan, look=False)
        missing = [group.id for group in place.groups(plan) if group.id not in committed]
        if missing:
            raise SetAsideError(place.path, failures_of(place.path / "groups", missing))
        latents = _open_latents(job, place, plan)
        class_ids = {class_info.id for class_info in job.classes_of(place.groups(plan))}
        left_out = LeftOut.of(latents, latents.ranges_of(class_ids))
        if place.shard is None:
            return run.finish(plan, left_out.failures, left_out.first_frames, watch)
        record = ShardRecord(left_out, watch.seconds, watch.waits)
        record.write(place.path, place.shard, run.fingerprint)
        records = all_records(place.path, place.shard, run.fingerprint)
        if len(records) < place.shard.count or plan.without(committed):
            return shard_summary(run, place.shard, plan, record)
        left_out, watch = combined(records)
        return run.finish(plan, left_out.failures, left_out.first_frames, watch)


def forgive(run: RunDirectory, place: Place) -> None:
    """Let the groups that were set aside be tried again, before a driver starts its processes."""
    plan = run.saved_plan()
    if plan is not None:
        claims = GroupClaims(place.path, place.groups(plan), set(), Pulse(place.timing))
        claims.forgive()


def work(job: Job, place: Place, run: RunDirectory, watch: Stopwatch, progress: Listener) -> None:
    """Encode and generate what nobody else does, until nothing is left."""
    with Pulse(place.timing) as pulse:
        _Distillation(job, place, run, pulse, watch, progress).work()


def _open_latents(job: Job, place: Place, plan: Plan) -> LatentStore:
    made_by = job.latents_made_by(plan.encode_batch, plan.threads)
    path = files.make_directory(job.latents_path(place.artifacts, plan.encode_batch, plan.threads))
    with locked(path, wait=place.timing.patience):
        return LatentStore(path, made_by, job.source.items, job.latent_shape)


@dataclass(frozen=True)
class _Distillation:
    """The part of a run that one process does."""

    job: Job
    place: Place
    run: RunDirectory
    pulse: Pulse
    watch: Stopwatch
    progress: Listener

    def work(self) -> None:
        plan, networks = self._open()
        job, run = self.job, self.run
        groups = self.place.groups(plan)
        latents = self._latents(plan, networks, {class_info.id for class_info in job.classes_of(groups)})
        networks = networks.guarded(self.pulse.busy if self.job.device.type == "cpu" else self.pulse.ticking)
        claims = GroupClaims(self.place.path, groups, run.committed(plan), self.pulse, self.place.seat)
        if not self.place.is_helper:
            claims.forgive()
        missing = [group for group in groups if group.id not in run.committed(plan)]
        require_usable(job.classes_of(missing), latents, job.config)
        config = replace(job.config, threads=job.threads) if self.place.is_helper else job.config
        clustering = Clustering.of(latents, job.source, config)
        generation = Generation(
            job, self.place, run, self.pulse, self.watch, self.progress, networks, claims, clustering
        )
        total = sum(map(clustering.images_of, missing))
        self.progress.follow("distill", Stream(total, generation.images(plan)))

    def _open(self) -> tuple[Plan, Networks]:
        """Return the run's plan, made now if there is none, and the networks, opened with the plan's threads."""
        run = self.run
        with self.watch("import"):
            self.job.import_libraries()
        plan = run.saved_plan()
        networks = self._open_networks(plan)
        with self.place.locked():
            run.begin()  # only now: a model that cannot be opened leaves no run behind
            if plan is None:
                plan = run.saved_plan()
                if plan is not None and plan.threads != torch.get_num_threads():
                    networks = self._open_networks(plan)
            if plan is None:
                with self.watch("plan"):
                    plan = self._new_plan(networks)
            run.committed(plan, look=not self.place.is_helper)
        return plan, networks

    def _open_networks(self, plan: Plan | None) -> Networks:
        # A run that goes on has the threads it was begun with, on any machine: they are part of what fixes the bytes.
        torch.set_num_threads(self.job.threads if plan is None else plan.threads)
        with self.watch("open"):
            return self.job.open_networks()

    def _new_plan(self, networks: Networks) -> Plan:
        job = self.job
        encoded_with = job.encoded_with(self.place.artifacts)
        # Machines of shards that cannot see each other are to come to one plan: nothing that is timed goes into it.
        batches = choose_batches(job, networks, job.schedule, encoded_with, probe=self.place.shard is None)
        latents = job.latents_path(self.place.artifacts, batches.encode, job.threads).name
        class_ids = [class_info.id for class_info in job.source.classes]
        plan = replace(make_plan(class_ids, job.config.ipc, batches, threads=job.threads), latents=latents)
        self.run.save_plan(plan)
        return plan

    def _latents(self, plan: Plan, networks: Networks, class_ids: set[int]) -> LatentStore:
        """Return the latents of these classes: from the artifacts, or encoded now as far as nobody else does."""
        latents = _open_latents(self.job, self.place, plan)
        missing = latents.missing_of(class_ids)
        if missing:
            encoding = _Encoding(self, networks, latents, missing)
            left = sum(latents.ranges[number].stop - latents.ranges[number].start for number in missing)
            self.progress.follow("encode", Stream(left, encoding.images()))
            with locked(latents.path, wait=self.place.timing.patience):
                latents.finish()
        latents.check_budget(self.job.config.max_bad_fraction)
        return latents


@dataclass(frozen=True)
class _Encoding:
    """The encoding of ranges of the source, one stream over as many as can be had, and the ends of that stream."""

    distillation: _Distillation
    networks: Networks
    latents: LatentStore
    ranges: list[int]  # that are to be done

    def images(self) -> Iterator[object]:
        """Encode ranges until none is left, and yield something for each image that is encoded, here or elsewhere.

        Raises:
            SetAsideError: ranges failed again and again; without them no class is whole.
        """
        latents, place, job = self.latents, self.distillation.place, self.distillation.job
        claims = UnitClaims(latents.ranges_folder, self.ranges, latents.done, self.distillation.pulse, place.seat)
        if not place.is_helper:
            claims.forgive()
        encoded = set(latents.done)
        while True:
            try:
                for batch in self._stream(claims):
                    encoded.add(latents.range_at(batch.first))
                    yield from range(len(batch))
            except OutOfMemoryError as error:
                latents.halve_batch(error)
                self.distillation.progress.say(f"{error}; going on with batches of {latents.batch}")
                release(job.device)
                continue
            except (D4MError, *UNFORESEEN) as error:
                claims.give_back(f"{type(error).__name__}: {error}")
                raise
            release(job.device)
            left = claims.look()
            latents.refresh()
            for number in sorted(latents.done - encoded):
                encoded.add(number)
                yield from range(latents.ranges[number].start, latents.ranges[number].stop)
            if latents.complete or latents.done.issuperset(self.ranges):
                return
            if not left:
                raise SetAsideError(latents.path, failures_of(latents.ranges_folder, sorted(claims.set_aside)))
            time.sleep(place.timing.poll)

    def _stream(self, claims: UnitClaims) -> Iterator[EncodedBatch]:
        """Encode the ranges of which no try has failed, else one of which one has."""
        job, watch, latents = self.distillation.job, self.distillation.watch, self.latents
        pulse = self.distillation.pulse
        guard = pulse.busy if job.device.type == "cpu" else pulse.ticking
        with Workers(watch) as workers:
            batches = encode(
                job.source,
                self.networks.vae_encoder.guarded(guard),
                resolution=job.resolution,
                draw=job.latent_shape if job.config.latent == "sample" else None,
                batch=latents.batch,
                workers=workers,
                spans=latents.spans(claims),
            )
            yield from latents.fill(batches, workers, claims).watched(watch, "encode")
