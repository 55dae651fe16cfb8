"""Students on distilled and on other sets of their size; every figure of docs/accuracy.md.

    python bench/accuracy.py --data DIR --ipc 1,10,50 > bench/accuracy.jsonl
    python bench/accuracy.py --data DIR --ipc 10 --student convnet3 --student resnet18 > bench/architectures.jsonl
    python bench/accuracy.py --ipc 10 --strength 0.5 --guidance 4 --arms distilled,random

A line is a row of `d4m-fast evaluate --json`: an arm under a regime, all generation seeds and students in it. DIR has
the real images (Fashion-MNIST's IDX files, or a directory of train/ and test/); without it the bundled ones are taken.
Runs, students and labels are kept below `--out`, so this resumes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

REGIMES = ("hard", "fixed", "online")
ARMS = "distilled,random,medoid,random-vae,medoid-vae,decoded,coreset"


def d4m_fast(*arguments: object) -> dict[str, Any]:
    """Run a command and read its JSON."""
    command = [sys.executable, "-m", "d4m_fast", *map(str, arguments), "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def distilled(out: Path, source: tuple[object, ...], ipc: int, seed: int, settings: dict[str, str]) -> Path:
    """Return the run of a generation seed, finished if it was not."""
    run = out / "-".join((f"ipc{ipc}", *settings.values(), f"seed{seed}"))
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    # One thread and no engine of its own for each machine: the same images wherever the rounding is the same.
    fixed = ("--engine", "torch", "--threads", 1, "--artifacts", out / "artifacts")
    d4m_fast("distill", *source, "--ipc", ipc, "--seed", seed, "--out", run, *fixed, *flags)
    return run


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default="runs/accuracy", show_default=True)
@click.option("--ipc", default="10", show_default=True, help="Images per class, separated by commas.")
@click.option("--generations", default=3, show_default=True, help="Generation seeds.")
@click.option("--seeds", default=2, show_default=True, help="Students of each generation seed and arm.")
@click.option("--width", default=32, show_default=True)
@click.option("--student", "students", multiple=True, default=["convnet3"], show_default=True)
@click.option("--teacher", default="bundled", show_default=True)
@click.option("--regime", "regimes", multiple=True, default=REGIMES, show_default=True)
@click.option("--arms", default=ARMS, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--strength", default="0.7", show_default=True)
@click.option("--guidance", default="8", show_default=True)
@click.option("--preset", default="reference", show_default=True)
@click.option("--allow-unknown-prompts", "unknown", is_flag=True, help="Distill with a model that knows other classes.")
def main(
    data: Path | None,
    out: Path,
    ipc: str,
    generations: int,
    seeds: int,
    width: int,
    students: tuple[str, ...],
    teacher: str,
    regimes: tuple[str, ...],
    arms: str,
    workers: int,
    unknown: bool,
    **settings: str,
) -> None:
    source = (*(() if data is None else ("--data", data)), *(("--allow-unknown-prompts",) if unknown else ()))
    for budget in map(int, ipc.split(",")):
        runs = [distilled(out, source, budget, seed, settings) for seed in range(generations)]
        report = d4m_fast(
            "evaluate",
            *runs,
            *("--arms", arms, "--seeds", seeds, "--width", width, "--teacher", teacher, "--workers", workers),
            *(part for regime in regimes for part in ("--regime", regime)),
            *(part for student in students for part in ("--student", student)),
        )
        for row in report["rows"]:
            shown = {name: value for name, value in row.items() if name not in ("confusion", "seconds")}
            click.echo(json.dumps({**shown, **settings, "width": width}))


if __name__ == "__main__":
    main()
