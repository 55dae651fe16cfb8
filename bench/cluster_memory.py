"""Peak memory of the clustering stage, by number of classes: it holds one group of classes at a time.

    python bench/cluster_memory.py --classes 8,32

Latents are Gaussian noise; peaks are the operating system's, above those of a process that loads all but clusters
nothing. `arrays` adds up what the stage has to hold: a group's float16 latents, for each thread a float32 copy X,
G = X X^T, three (k, n) float64 tables and float64 means, and the prototypes of the group.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.latents import EncodedBatch, LatentStore
from d4m_fast.runs.ranges import OwnRanges
from d4m_fast.sources.records import Item

CHILD = """
import sys
from pathlib import Path
from types import SimpleNamespace
import d4m_fast.engine.prototypes as prototypes
import d4m_fast.kernels.kmeans
from d4m_fast.config.distill import DistillConfig
from d4m_fast.runs.latents import LatentStore
from d4m_fast.sources.records import ClassInfo, Item
path, classes, n, d, ipc, threads, group, work = sys.argv[1], *map(int, sys.argv[2:])
prototypes.GROUP_BYTES = group
items = [Item(c, r, "") for c in range(classes) for r in range(n)]
store = LatentStore(Path(path), {"batch": n}, items, (4, d // 4, 1))
infos = [ClassInfo(c, str(c), "") for c in range(classes)]
stream = prototypes.cluster(infos, store, SimpleNamespace(items=items), DistillConfig(ipc=ipc, threads=threads))
for _ in stream if work else ():
    pass
"""


def _random(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 4, d // 4, 1), dtype=np.float32)


def write(path: Path, classes: int, n: int, d: int) -> None:
    items = [Item(c, r, "") for c in range(classes) for r in range(n)]
    store = LatentStore(path, {"batch": n}, items, (4, d // 4, 1))
    ours = OwnRanges(store.missing)
    spans = store.spans(ours)
    batches = (EncodedBatch(items[a:b], _random(n, d, a // n), [], first=a) for a, b in spans)
    with Workers(Stopwatch()) as workers:
        for _ in store.fill(Stream(classes, batches), workers, ours):
            pass
    store.finish()


def peak(*arguments: object) -> int:
    """Largest resident size of a child process, in bytes."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, arguments)])
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise click.ClickException(f"a child ended with status {status}")
    return usage.ru_maxrss * 1024


@click.command(help=__doc__)
@click.option("--classes", "counts", default="8,32", show_default=True)
@click.option("--n", default=1000, show_default=True, help="Images per class.")
@click.option("--d", default=4096, show_default=True, help="Values per latent.")
@click.option("--ipc", default=50, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--group", default=4, show_default=True, help="Classes per group.")
@click.option("--work", type=click.Path(path_type=Path), default="build/cluster-memory", show_default=True)
def main(counts: str, n: int, d: int, ipc: int, threads: int, group: int, work: Path) -> None:
    for classes in map(int, counts.split(",")):
        path = work / f"{classes}x{n}x{d}"
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(path, classes, n, d))
        writer.start()  # a child's peak would start from what this process once held
        writer.join()
        settings = (path, classes, n, d, ipc, threads, group * 2 * n * d)
        above = np.median([peak(*settings, 1) for _ in range(3)]) - np.median([peak(*settings, 0) for _ in range(3)])
        each = 4 * n * d + 4 * n * n + 3 * 8 * ipc * n + 8 * ipc * d
        arrays = group * 2 * n * d + threads * each + group * 4 * ipc * d
        row = {"classes": classes, "group": group, "n": n, "d": d, "k": ipc, "threads": threads}
        click.echo(json.dumps({**row, "above_empty_mb": round(above / 1e6), "arrays_mb": round(arrays / 1e6)}))


if __name__ == "__main__":
    main()
