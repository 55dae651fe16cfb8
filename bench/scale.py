"""Many workers on one run directory: efficiency, the driver's memory and time, operations on the directory, resumes.

    python bench/scale.py --workers 1,4,16,64                                   # 4 minutes
    python bench/scale.py --workers 64 --groups-per-worker 16 --ipc 200         # 8 minutes, ImageNet-1K at IPC 200
    python bench/scale.py --workers 64 --groups-per-worker 342 --ipc 20         # 17 minutes, ImageNet-21K's classes

Leases, plan, records, prototypes and image files are those of `distill`, through the same classes; the engine sleeps
0.15 s per image, which is an H100's time for the reference preset at 40 % of its peak. Classes grow with workers: 16
groups of one class each, about what 1,000 classes give 64 workers. Scaled: images are 8 pixels wide, because 64
workers' PNG encoders do not fit the cores that this runs on; latents are not read and k-means is not run; with --ipc 20
a group takes a tenth of IPC 200's time, so that what a group costs beside its images weighs ten times as much.

Efficiency is the engine's seconds, spread evenly over the workers, in parts of the time from the first worker's start
to the end of the last; "bound" is what whole groups allow at best. Operations are system calls on files by the workers.
"""

from __future__ import annotations

import json
import math
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np

from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.claims import BundleLimits, GroupClaims, Seat
from d4m_fast.runs.commit import recorded_units
from d4m_fast.runs.plan import Batches, Group, Plan, make_plan
from d4m_fast.runs.records import Prototypes, Sample
from d4m_fast.runs.run import RunDirectory
from d4m_fast.sources.records import ClassInfo
from d4m_fast.storage.leases import Pulse, Timing

BATCH = 50
LATENT = (4, 8, 8)
PIXELS = np.zeros((8, 8, 3), np.uint8)
LOOK_SECONDS = 0.5  # between a driver's looks, as in launch/local.py
CALLS = ("listdir", "open", "stat", "lstat", "replace", "link", "unlink", "fsync", "pwrite", "mkdir")


class Standin:
    """An engine that takes its time and does nothing."""

    def __init__(self, seconds: float, ipc: int) -> None:
        self._seconds, self._ipc = seconds, ipc

    def prototypes(self, bundles: Iterator[list[Group]], claims: GroupClaims) -> Iterator[Prototypes]:
        zeros, ones = np.zeros((self._ipc, *LATENT), np.float32), np.ones(self._ipc)
        for bundle in bundles:
            claims.work([group.id for group in bundle])
            claims.wait([group.id for group in bundle])
            for group in bundle:
                claims.work([group.id])
                for class_id in group.classes:
                    info = ClassInfo(class_id, f"n{class_id:08d}", "a class")
                    yield Prototypes(info, zeros, ones, ones / self._ipc, ("x.jpg",) * self._ipc)

    def batches(self, prototypes: Stream[Prototypes]) -> Iterator[list[Sample]]:
        for of_class in prototypes:
            for start in range(0, self._ipc, BATCH):
                indices = range(start, min(start + BATCH, self._ipc))
                yield [Sample(of_class.info, index, index, 1, 0.0, "x.jpg", PIXELS) for index in indices]

    def compute(self, batch: list[Sample]) -> list[Sample]:
        time.sleep(self._seconds * len(batch))
        return batch


def work(run: RunDirectory, plan: Plan, ipc: int, seconds: float, seat: Seat) -> None:
    """What pipeline.py does with groups, around the stand-in."""
    engine, limits = Standin(seconds, ipc), BundleLimits(lambda group: 1, 1 << 28, 8)
    with Pulse(Timing()) as pulse:
        claims = GroupClaims(run.path, plan.groups, run.committed(plan, look=False), pulse, seat)
        while True:
            for bundles in (claims.bundles(limits), claims.retried()):
                with Workers(Stopwatch()) as workers:
                    count = len(plan.groups) * ipc
                    ahead = workers.ahead(Stream(count, engine.prototypes(bundles, claims)), 1, "prepare")
                    batches = Stream(count, engine.batches(run.save_prototypes(ahead)))
                    # As generate.py waits for a GPU: one batch is computed while another is written.
                    computed = workers.map(engine.compute, batches, threads=1, depth=1, name="device")
                    samples = Stream(count, chain.from_iterable(computed))
                    for _ in run.write(samples, plan, claims, lambda group: ipc * len(group.classes), "png", workers):
                        pass
            if not claims.look():
                return
            time.sleep(pulse.timing.poll)


def counted(counts: Counter[str]) -> None:
    """Count this process's operations on files."""

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            counts[name] += 1
            return function(*args, **named)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def start_worker(root: Path, run: RunDirectory, plan: Plan, ipc: int, seconds: float, seat: Seat) -> int:
    """Fork a worker; its operations are in a file when it has ended."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        counts: Counter[str] = Counter()
        counted(counts)
        work(run, plan, ipc, seconds, seat)
        (root / f"counts-{seat.rank}.json").write_text(json.dumps(counts))
        code = 0
    finally:
        os._exit(code)


def measure(root: Path, workers: int, groups: int, ipc: int, seconds: float) -> dict[str, Any]:
    """One row: a run from its plan to its summary."""
    path = root / f"run-{workers}"
    path.mkdir()
    run = RunDirectory(path, {"options": {"ipc": ipc}})
    run.begin()
    plan = make_plan(range(groups), ipc, Batches(generate=min(BATCH, ipc)), threads=1)
    run.save_plan(plan)
    start, cpu = time.monotonic(), time.process_time()
    children = [start_worker(root, run, plan, ipc, seconds, Seat(rank, workers)) for rank in range(workers)]
    while len(recorded_units(os.listdir(path / "groups"))) < len(plan.groups):
        time.sleep(LOOK_SECONDS)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    wall = time.monotonic() - start
    assert not any(codes), codes
    driver_cpu = time.process_time() - cpu
    finish_start = time.monotonic()
    summary = RunDirectory(path, {"options": {"ipc": ipc}}).finish(plan, [], 0, Stopwatch())
    assert summary["images"] == groups * ipc
    counts = Counter[str]()
    for rank in range(workers):
        counts.update(json.loads((root / f"counts-{rank}.json").read_text()))
    engine = groups * ipc * seconds
    rounds = math.ceil(len(plan.groups) / workers)
    return {
        "workers": workers,
        "groups": len(plan.groups),
        "images": groups * ipc,
        "wall_seconds": round(wall, 2),
        "efficiency": round(engine / workers / wall, 4),
        "bound": round(len(plan.groups) / workers / rounds, 4),
        "driver_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "driver_cpu_share": round(driver_cpu / wall, 4),
        "finish_seconds": round(time.monotonic() - finish_start, 2),
        "operations_per_second": round(counts.total() / wall),
        "operations_per_image": round(counts.total() / (groups * ipc), 2),
        "operations": dict(counts.most_common()),
        "resume": {share: resume(path, plan, ipc, share) for share in (0.99, 0.5)},
    }


def resume(path: Path, plan: Plan, ipc: int, share: float) -> float:
    """Seconds until a process that goes on with a run, of which so much is done, has its first group."""
    (path / "summary.json").unlink(missing_ok=True)
    for group in plan.groups[int(share * len(plan.groups)) :]:
        (path / "groups" / f"{group.id:05d}.json").unlink(missing_ok=True)
    start = time.monotonic()
    run = RunDirectory(path, {"options": {"ipc": ipc}})
    committed = run.committed(plan)
    with Pulse(Timing()) as pulse:
        claims = GroupClaims(path, plan.groups, committed, pulse)
        next(claims.bundles(BundleLimits(lambda group: 1, 1 << 28, 1)))
        return round(time.monotonic() - start, 3)


@click.command(help=__doc__)
@click.option("--workers", default="1,4,16,64", show_default=True)
@click.option("--groups-per-worker", default=16, show_default=True)
@click.option("--ipc", default=20, show_default=True)
@click.option("--image-seconds", default=0.15, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the runs are written, and removed.")
def main(workers: str, groups_per_worker: int, ipc: int, image_seconds: float, folder: Path | None) -> None:
    for count in map(int, workers.split(",")):
        with tempfile.TemporaryDirectory(dir=folder) as root:
            row = measure(Path(root), count, count * groups_per_worker, ipc, image_seconds)
        click.echo(json.dumps({**row, "ipc": ipc, "image_seconds": image_seconds}))


if __name__ == "__main__":
    main()
