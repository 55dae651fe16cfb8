"""Choice of the processes that do a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from d4m_fast import pipeline
from d4m_fast.config.launch import LaunchConfig
from d4m_fast.flow.progress import Listener
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.job import Job
from d4m_fast.launch.local import distill_by_workers
from d4m_fast.launch.places import resolve_shard
from d4m_fast.runs.place import Place
from d4m_fast.storage.leases import Timing


def launched(
    job: Job, launch: LaunchConfig, run: Path, artifacts: Path, watch: Stopwatch, progress: Listener
) -> dict[str, Any]:
    """Do what is missing of a run by as many processes as are asked for, and return its summary; as `distill`."""
    timing = Timing(launch.lease_seconds)
    shard = None if launch.shard is None else resolve_shard(launch.shard, os.environ)
    if launch.ray is not None:
        from d4m_fast.launch.ray import distill_by_ray

        most = None if launch.workers == 1 else launch.workers
        return distill_by_ray(job, Place(run, artifacts, timing, shard=shard), launch.ray, most, watch, progress)
    if launch.workers == 1:
        return pipeline.distill(job, run, artifacts, watch, progress, timing, shard)
    place = Place(run, artifacts, timing, shard=shard)
    return distill_by_workers(job, place, launch.workers, watch, progress)
