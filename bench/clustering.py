"""What the clustering is worth: students on sets that differ in their prototypes only, and on random real images.

    python bench/clustering.py --ipc 10 --labels soft,hard
    python bench/clustering.py --ipc 50 --labels hard

One set and one student per generation seed, the bundled images and model, protocol `small`. Everything is kept below
`--out`, so this resumes. `differs`: how many of the prototypes are not also prototypes of the Lloyd row.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from safetensors.numpy import load_file

from d4m_fast.config.choices import LabelKind
from d4m_fast.evaluation.evaluate import evaluate
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.relabel import BUNDLED, open_teacher
from d4m_fast.evaluation.results import DISTILLED, RANDOM
from d4m_fast.evaluation.train import Task
from d4m_fast.evaluation.workers import run_tasks
from d4m_fast.sources.dataset import open_source
from d4m_fast.storage import files
from d4m_fast.storage.state import Schema, require_state, write_state

ACCURACY = Schema("accuracy of a student", 1, "remove {file} and run again")
LLOYD = "Lloyd"
METHODS = {  # --kmeans, --prototype
    "official mini-batches": ("minibatch", "mean"),
    LLOYD: ("direct", "mean"),
    "Lloyd, nearest real latent": ("direct", "medoid"),
    "Lloyd and Hartigan": ("gram", "mean"),
}


def directory(out: Path, ipc: int, method: str, seed: int) -> Path:
    return out / "-".join((f"ipc{ipc}", *METHODS[method], f"seed{seed}"))


def distill(out: Path, ipc: int, method: str, seed: int, threads: int) -> Path:
    kmeans, prototype = METHODS[method]
    """The run of a method; made if it is not there."""
    run = directory(out, ipc, method, seed)
    if (run / "summary.json").is_file():
        return run
    options = {"ipc": ipc, "kmeans": kmeans, "prototype": prototype, "seed": seed, "threads": threads, "out": run}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "d4m_fast", "distill", "--artifacts", str(out / "artifacts"), "--json", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def prototypes(run: Path) -> set[bytes]:
    tables = (load_file(path)["centroids"] for path in sorted((run / "prototypes").iterdir()))
    return {row.tobytes() for table in tables for row in table}


def differs(out: Path, ipc: int, method: str) -> str | None:
    """How many prototypes of the first seed are none of the Lloyd row's."""
    mine, lloyd = (directory(out, ipc, name, 0) for name in (method, LLOYD))
    if not (lloyd / "prototypes").is_dir():
        return None
    return f"{len(prototypes(mine) - prototypes(lloyd))} of {len(prototypes(mine))}"


def accuracies(out: Path, runs: Sequence[Path], arm: str, ipc: int, width: int, kind: LabelKind) -> list[float]:
    """Of one student per run, trained now where no file has it."""
    train, test = open_source(BUNDLED), open_source(BUNDLED, split="test")
    teacher = open_teacher(BUNDLED, [info.prompt for info in test.classes]) if kind == "soft" else None
    plan = evaluate(
        [open_source(str(run)) for run in runs],
        train,
        test,
        teacher,
        protocol=PROTOCOLS["small"],
        width=width,
        label_kind=kind,
        seeds=range(len(runs)),
    )

    def of(task: Task) -> float:
        name = f"ipc{ipc}-random" if arm == RANDOM else runs[task.seed].name
        saved = files.make_directory(out / "students") / f"{name}-w{width}-{kind}-{task.seed}.json"
        if not saved.exists():
            (result,) = run_tasks(plan.exam, [task])
            write_state(saved, ACCURACY, {"accuracy": result.accuracy})
        return float(require_state(saved, ACCURACY)["accuracy"])

    return [of(task) for task in plan.tasks if task.arm == arm]


def row(ipc: int, method: str, kind: str, found: Sequence[float], differs: str | None = None) -> dict[str, Any]:
    spread = statistics.stdev(found) if len(found) > 1 else None
    mean = {"mean": statistics.fmean(found), "std": spread, "accuracies": found}
    return {"ipc": ipc, "prototypes": method, "labels": kind, **mean, "differs": differs}


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default="runs/clustering", show_default=True)
@click.option("--ipc", default=10, show_default=True)
@click.option("--width", default=32, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Generation seeds, and a student for each.")
@click.option("--labels", default="soft,hard", show_default=True)
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)), default=list(METHODS))
@click.option("--threads", default=1, show_default=True, help="Of generation.")
def main(out: Path, ipc: int, width: int, seeds: int, labels: str, methods: tuple[str, ...], threads: int) -> None:
    kinds: list[Any] = labels.split(",")
    for method in methods:
        runs = [distill(out, ipc, method, seed, threads) for seed in range(seeds)]
        for kind in kinds:
            found = accuracies(out, runs, DISTILLED, ipc, width, kind)
            click.echo(json.dumps(row(ipc, method, kind, found, differs(out, ipc, method))))
    for kind in kinds:
        click.echo(json.dumps(row(ipc, "random real images", kind, accuracies(out, runs, RANDOM, ipc, width, kind))))


if __name__ == "__main__":
    main()
