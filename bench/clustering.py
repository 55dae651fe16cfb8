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

REGIMES = {"soft": "online", "hard": "hard"}
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


def accuracies(runs: Sequence[Path], arms: str, width: int, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of one student per run and arm, trained now where they were not."""
    regimes = [part for kind in kinds for part in ("--regime", REGIMES[kind])]
    command = [sys.executable, "-m", "d4m_fast", "evaluate", *map(str, runs), "--arms", arms, *regimes]
    command += ["--width", str(width), "--seeds", "1", "--out", str(runs[0].parent / "evaluation"), "--json"]
    report: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return list(report["rows"])


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
    kinds = labels.split(",")
    for method in methods:
        runs = [distill(out, ipc, method, seed, threads) for seed in range(seeds)]
        arms = "distilled,random" if method == methods[-1] else "distilled"
        for measured in accuracies(runs, arms, width, kinds):
            kind = next(kind for kind, regime in REGIMES.items() if regime == measured["regime"])
            is_random = measured["arm"] == "random"
            name, changed = ("random real images", None) if is_random else (method, differs(out, ipc, method))
            click.echo(json.dumps(row(ipc, name, kind, measured["accuracy"], changed)))


if __name__ == "__main__":
    main()
