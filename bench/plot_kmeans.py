"""Draw docs/kmeans.png from bench/kmeans.jsonl: time and inertia against k.

python bench/plot_kmeans.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

COLOURS = {
    "ours, Lloyd": "tab:blue",
    "ours, Hartigan": "tab:green",
    "official mini-batches": "tab:gray",
    "scikit-learn": "tab:orange",
    "faiss": "tab:red",
}


def read(file: Path, table: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [row for row in found if row["table"] == table]


def markdown(found: list[dict[str, Any]]) -> str:
    """Seconds per class and, in brackets, inertia against the faster library's."""
    names = [name for name in COLOURS if any(row["row"] == name for row in found)]
    cases = sorted({(row["d"], row["n"], row["k"]) for row in found})
    lines = [["points x values, k", "rounds", *names, "Lloyd's speed against the faster library's"]]
    lines.append(["---"] * len(lines[0]))
    for d, n, k in cases:
        case = {row["row"]: row for row in found if (row["d"], row["n"], row["k"]) == (d, n, k)}
        cells = [f"{case[name]['seconds']:.3f} ({case[name]['inertia_ratio']:.3f})" for name in names]
        ours = case["ours, Lloyd"]
        lines.append([f"{n} x {d}, {k}", str(ours["rounds"]), *cells, f"{ours['speedup']:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(found: list[dict[str, Any]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = sorted({(row["n"], row["d"]) for row in found}, key=lambda shape: shape[1])
    figure, axes = plt.subplots(2, len(shapes), figsize=(4 * len(shapes), 6), sharex=True, layout="constrained")
    for column, shape in enumerate(shapes):
        for name, colour in COLOURS.items():
            line = sorted((r for r in found if (r["n"], r["d"]) == shape and r["row"] == name), key=lambda r: r["k"])
            ks = [row["k"] for row in line]
            for axis, value in zip(axes[:, column], ("seconds", "inertia_ratio"), strict=True):
                axis.plot(ks, [row[value] for row in line], "o-", color=colour, label=name)
        axes[0, column].set(title=f"{shape[0]:,} points of {shape[1]:,} values", xscale="log", yscale="log")
        axes[1, column].set(xlabel="k", xticks=ks, xticklabels=ks)
        axes[1, column].minorticks_off()
    axes[0, 0].set_ylabel("seconds per class")
    axes[1, 0].set_ylabel("inertia / the faster library's")
    axes[0, 0].legend(fontsize="small")
    figure.savefig(out, dpi=110)


@click.command(help=__doc__)
@click.option("--figures", type=click.Path(path_type=Path), default="bench/kmeans.jsonl", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="docs/kmeans.png", show_default=True)
def main(figures: Path, out: Path) -> None:
    draw(read(figures, "whole"), out)
    for table in ("whole", "lloyd"):
        click.echo(f"{table}\n{markdown(read(figures, table))}")


if __name__ == "__main__":
    main()
