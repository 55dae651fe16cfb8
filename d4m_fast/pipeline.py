"""The sentence this program is: encode, cluster, generate, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from d4m_fast.console import Progress
from d4m_fast.data import files
from d4m_fast.data.latents import LatentStore
from d4m_fast.data.plan import Plan
from d4m_fast.data.run import RunDirectory
from d4m_fast.data.timing import Stopwatch
from d4m_fast.engine.encode import encode
from d4m_fast.engine.generate import generate
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.prototypes import cluster
from d4m_fast.prepare import Job


def distill(job: Job, path: Path, artifacts: Path, watch: Stopwatch, progress: Progress) -> dict[str, Any]:
    """Do what is left of a run; returns its summary.

    Args:
        path: of the run directory.
        artifacts: where latents are kept.
        watch: gets the seconds of every stage; they are in the summary, too.
    """
    with files.locked(files.make_directory(path)):
        run = RunDirectory(path, job.identity)
        plan = Plan.from_json(run.plan(job.plan.to_json()))
        groups = plan.without(run.committed())
        finished = run.finished()
        if finished is not None and not groups:
            return finished
        torch.set_num_threads(plan.threads)
        with watch("import"):
            job.import_libraries()
        with watch("open"):
            networks = job.open_networks()

        latents = _latents(job, plan, networks, artifacts, watch, progress)
        prototypes = run.keep(
            cluster(job.classes_of(groups), latents, job.source, job.config).watched(watch, "cluster")
        )
        samples = generate(
            prototypes,
            groups,
            networks,
            job.schedule,
            job.config,
            batch=plan.batch_size,
            image_size=job.image_size,
            watch=watch,
        )
        progress.follow("distill", run.write(samples, groups, job.config.ipc).watched(watch, "write"))
        return run.finish(latents.failures, watch.seconds)


def _latents(
    job: Job, plan: Plan, networks: Networks, artifacts: Path, watch: Stopwatch, progress: Progress
) -> LatentStore:
    """The latents of the source: from the cache, or encoded now as far as they are missing."""
    path = files.make_directory(job.latents_path(artifacts, plan))
    with files.locked(path):
        latents = LatentStore(path, job.latents_made_by(plan), job.source.items, job.latent_shape)
        if not latents.complete:
            batches = encode(
                job.source,
                networks.vae_encoder,
                resolution=job.resolution,
                latent=job.config.latent,
                batch=plan.encode_batch,
                start=latents.position,
            )
            progress.follow("encode", latents.fill(batches).watched(watch, "encode"))
    latents.check_budget(job.config.max_bad_fraction)
    return latents
