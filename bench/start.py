"""How long until something happens: `--help`, the imports, and the first encoded batch after them.

    python bench/start.py

`--help` is the median of processes of their own; the rest is this process's: a run of the bundled images with the
bundled model, two images per class and a short schedule, of which only the start counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from d4m_fast.config.distill import DistillConfig
from d4m_fast.console import Progress
from d4m_fast.flow.stopwatch import Stopwatch

ROUNDS = 7


def seconds_of_help() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "d4m_fast", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_batch(folder: Path) -> tuple[float, float]:
    """Seconds of the imports, and from their end to the first encoded batch."""
    start = time.perf_counter()
    from d4m_fast import pipeline
    from d4m_fast.engine.modules import import_libraries
    from d4m_fast.job import prepare

    import_libraries(networks=True)
    imported, watch = time.perf_counter(), Stopwatch(trace=True)
    job = prepare(DistillConfig(ipc=2, steps=4), artifacts=folder / "artifacts")
    pipeline.distill(job, folder / "run", folder / "artifacts", watch, Progress(quiet=True))
    first = next(event for event in watch.events if event.stage == "encode")
    return imported - start, first.start + first.seconds - imported


@click.command(help=__doc__)
def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        imports, encoded = first_batch(Path(folder))
    helped = statistics.median(seconds_of_help() for _ in range(ROUNDS))
    row = {"help_seconds": helped, "import_seconds": imports, "first_encoded_batch_seconds": encoded}
    click.echo(json.dumps({name: round(value, 3) for name, value in row.items()}))


if __name__ == "__main__":
    main()
