"""What an accuracy costs: seconds and PFLOPs of every row of an evaluation, as cifar10-airbench lists its recipes.

    python bench/evaluate_cost.py runs/demo/evaluation/results.json >> bench/evaluate.jsonl

PFLOPs are those of the students' forward and backward passes, and of the teacher's where it is in the loop, counted by
torch.utils.flop_counter; seconds are the clock's, of all students of a row one after the other. One line per row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.teachers import open_teacher
from d4m_fast.report.results import read_results
from d4m_fast.sources.dataset import open_source

FEW = 2  # images that operations are counted on


def forward_flops(network: nn.Module, side: int, *, backward: bool) -> float:
    """Return the operations per image of a pass forward, and of the one back to the weights."""
    with FlopCounterMode(display=False) as counter:
        logits = network(torch.rand(FEW, 3, side, side))
        if backward:
            logits.sum().backward()
    return float(counter.get_total_flops() / FEW)


def cost(row: dict[str, Any], results: dict[str, Any], data: str) -> dict[str, Any]:
    """Return accuracy, seconds and PFLOPs per student of one row."""
    protocol, folders = results["subject"]["protocol"], results["subject"]["classes"]
    side, width = protocol["resolution"], results["provenance"]["width"]
    student = build_student(row["student"], classes=len(folders), image_size=side, width=width)
    per_image = forward_flops(student.train(), side, backward=True)
    if row["regime"] == "online":
        teacher = open_teacher(row["teacher"], open_source(data, prompts_needed=False).classes, resolution=side).network
        with torch.inference_mode():
            per_image += forward_flops(teacher, side, backward=False)
    images = protocol["epochs"] * row["images_per_class"] * len(folders)
    students = len(row["accuracy"])
    return {
        "case": "cost",
        "arm": row["arm"],
        "regime": row["regime"],
        "student": f"{row['student']}, {width} wide" if row["student"] == "convnet3" else row["student"],
        "images_per_class": row["images_per_class"],
        "accuracy": round(row["mean"], 2),
        "students": students,
        "seconds": round(row["seconds"] / students, 1),
        "pflops": float(f"{per_image * images / 1e15:.3g}"),
        "machine": results["provenance"]["machine"],
    }


@click.command(help=__doc__)
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.option("--data", default="bundled", show_default=True, help="Images of the classes that the teacher knows.")
def main(results: Path, data: str) -> None:
    value = read_results(results)
    for row in value["rows"]:
        if row["arm"] != "whole":
            click.echo(json.dumps(cost(row, value, data)))


if __name__ == "__main__":
    main()
