"""Distilled against random real images, for a grid of generation settings; some figures of docs/accuracy.md.

    python bench/accuracy.py --ipc 10 --width 32 --strength 0.7,0.3 --guidance 8,2

Every row is two runs of the command line: `d4m-fast distill` and `d4m-fast evaluate`. Both resume, so this does.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

FLAGS = ("strength", "guidance", "prototype", "latent")


def d4m_fast(*arguments: object) -> dict[str, Any]:
    """Run a command and read its JSON."""
    command = [sys.executable, "-m", "d4m_fast", *map(str, arguments), "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def measure(out: Path, settings: dict[str, str], ipc: int, seed: int, width: int, kind: str) -> dict[str, Any]:
    name = "-".join([f"ipc{ipc}", *settings.values(), f"seed{seed}"])
    options = [part for flag, value in settings.items() for part in (f"--{flag}", value)]
    d4m_fast("distill", "--ipc", ipc, "--seed", seed, "--out", out / name, *options)
    saved = out / name / "evaluation" / f"small-convnet3-w{width}-{kind}.json"
    if not saved.exists():
        d4m_fast("evaluate", out / name, "--width", width, "--label-kind", kind)
    report = json.loads(saved.read_text())
    means = {row["arm"]: f"{row['mean']:.1f} ± {row['std']:.1f}" for row in report["rows"]}
    return {**settings, "seed": seed, "labels": kind, **means, "gain": f"{report['gain_points'][kind]:+.1f}"}


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default="runs/accuracy", show_default=True)
@click.option("--ipc", default=10, show_default=True)
@click.option("--width", default=32, show_default=True)
@click.option("--seeds", default="0", show_default=True, help="Generation seeds.")
@click.option("--labels", default="soft,hard", show_default=True)
@click.option("--strength", default="0.7", show_default=True)
@click.option("--guidance", default="8", show_default=True)
@click.option("--prototype", default="mean", show_default=True)
@click.option("--latent", default="sample", show_default=True)
def main(out: Path, ipc: int, width: int, seeds: str, labels: str, **grid: str) -> None:
    for values in itertools.product(*(grid[flag].split(",") for flag in FLAGS)):
        for seed, kind in itertools.product(map(int, seeds.split(",")), labels.split(",")):
            row = measure(out, dict(zip(FLAGS, values, strict=True)), ipc, seed, width, kind)
            click.echo(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
