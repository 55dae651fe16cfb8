"""What each generation preset costs and gives; every figure of docs/presets.md.

    python bench/presets.py accuracy --ipc 10 --data DIR        one student per arm, generation seed and kind of label
    python bench/presets.py distance                            images of each preset beside those of `reference`
    python bench/presets.py speed                               images per second, the presets taking turns
    python bench/presets.py table                               the tables, from what the others left below --out

An arm is a preset's name, "random" (real images), or "SCHEDULER STEPS LOW:HIGH", a candidate. Students of protocol
`small` are trained on the distilled images and tested twice: on real training images that are in no bundled subset
("held out", by which presets are chosen), and on the test set (which is reported). DIR has Fashion-MNIST's IDX files.
Each cell is a file, and what is there is not made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import click
import torch



from d4m_fast.cli import cli as d4m_fast
from d4m_fast.config import PRESETS
from d4m_fast.data import files
from d4m_fast.data.dataset import BUNDLED, open_source
from d4m_fast.errors import DataError
from d4m_fast.evaluation.images import ImageSet, load_images, random_subset
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.relabel import open_teacher
from d4m_fast.evaluation.report import LabelKind
from d4m_fast.evaluation.train import Exam, Task, accuracy, fitted_student

SIDE, BUNDLED_PER_CLASS, HELD_OUT_PER_CLASS = 32, 500, 1000
RANDOM = "random"
ARMS = (*PRESETS, RANDOM)
"""Tried before the presets were fixed, one generation seed each."""
CANDIDATES = (
    *("dpmpp 20 0:1", "dpmpp 10 0:1", "dpmpp 8 0:1", "dpmpp 6 0:1", "dpmpp 5 0:1"),
    *("unipc 20 0:1", "unipc 10 0:1", "unipc 8 0:1", "unipc 6 0:1", "unipc 5 0:1"),
    *("model 50 0.2:0.6", "model 50 0:0.5", "model 50 0.3:0.7"),
    *("dpmpp 10 0.2:0.6", "dpmpp 10 0:0.5", "dpmpp 10 0.3:0.7", "dpmpp 10 0.2:0.45", "dpmpp 10 0.45:0.7"),
    *("dpmpp 8 0.2:0.6", "dpmpp 6 0.2:0.6", "unipc 10 0.2:0.6", "unipc 8 0.2:0.6"),
)


def flags(arm: str) -> list[str]:
    """How `d4m-fast distill` is asked for an arm."""
    if arm in PRESETS:
        return ["--preset", arm]
    scheduler, steps, interval = arm.split()
    return ["--scheduler", scheduler, "--steps", steps, "--guidance-interval", interval]


def distilled(out: Path, arm: str, ipc: int, seed: int) -> Path:
    """The run of an arm; made if it is not there."""
    run = out / f"ipc{ipc}" / arm.replace(" ", "_") / f"run-{seed}"
    fixed = ["--engine", "torch", "--threads", "1", "--batch-size", "50", "--artifacts", str(out / "artifacts")]
    asked = ["distill", "--ipc", str(ipc), "--seed", str(seed), "--out", str(run), *fixed, *flags(arm), "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        d4m_fast.main(asked, standalone_mode=False)
    return run


def held_out(data: str) -> ImageSet:
    """Training images that follow the bundled ones of each class in file order.

    Raises:
        DataError: the bundled images are not the first of each class.
    """
    whole, bundled = open_source(data), open_source(BUNDLED)
    first = [item for item in whole.items if item.rank < BUNDLED_PER_CLASS]
    if not torch.equal(load_images(whole, SIDE, first).images, load_images(bundled, SIDE).images):
        raise DataError(f"{data}: the bundled images are not the first {BUNDLED_PER_CLASS} of each class")
    after = range(BUNDLED_PER_CLASS, BUNDLED_PER_CLASS + HELD_OUT_PER_CLASS)
    return load_images(whole, SIDE, [item for item in whole.items if item.rank in after])


class Students:
    """Trains students and tests them on both sets."""

    def __init__(self, data: str, width: int) -> None:
        test = open_source(BUNDLED, split="test")
        teacher = open_teacher(BUNDLED, [info.prompt for info in test.classes])
        classes = tuple(info.id for info in test.classes)
        self._exam = Exam(PROTOCOLS["small"], width, len(classes), classes, load_images(test, SIDE), teacher)
        self._held_out = dataclasses.replace(self._exam, test=held_out(data))

    def __call__(self, train: ImageSet, kind: LabelKind, seed: int) -> dict[str, float]:
        student = fitted_student(self._exam, Task("", kind, seed, train))
        return {"held_out": accuracy(student, self._held_out), "test": accuracy(student, self._exam)}


def images_of(out: Path, arm: str, ipc: int, seed: int) -> ImageSet:
    if arm == RANDOM:
        source = open_source(BUNDLED)
        return load_images(source, SIDE, random_subset(source, ipc, seed))
    return load_images(open_source(str(distilled(out, arm, ipc, seed))), SIDE)


def cell(out: Path, arm: str, ipc: int, seed: int, kind: str) -> Path:
    return out / f"ipc{ipc}" / arm.replace(" ", "_") / f"{kind}-{seed}.json"


def measure(out: Path, students: Students, arm: str, ipc: int, seed: int, kind: LabelKind) -> dict[str, Any]:
    file = cell(out, arm, ipc, seed, kind)
    if not file.exists():
        found = students(images_of(out, arm, ipc, seed), kind, seed)
        files.make_directory(file.parent)
        files.write_json(file, {"arm": arm, "ipc": ipc, "seed": seed, "labels": kind, **found})
    row: dict[str, Any] = files.read_json(file)
    return row


@click.group(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default="runs/presets", show_default=True)
@click.pass_context
def main(context: click.Context, out: Path) -> None:
    context.obj = out


@main.command("accuracy")
@click.option("--data", default="/usr/share/datasets/fashion-mnist", show_default=True, help="The whole training set.")
@click.option("--arm", "arms", multiple=True, help="Again for each.  [default: the presets and random]")
@click.option("--screen", is_flag=True, help="The candidates instead.")
@click.option("--ipc", default=10, show_default=True)
@click.option("--width", default=32, show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True, help="Of generation, and of the student.")
@click.option("--labels", default="soft,hard", show_default=True)
@click.pass_obj
def accuracy_command(
    out: Path, data: str, arms: Sequence[str], screen: bool, ipc: int, width: int, seeds: str, labels: str
) -> None:
    students = Students(data, width)
    for seed in map(int, seeds.split(",")):
        for arm in arms or (CANDIDATES if screen else ARMS):
            for kind in labels.split(","):
                row = measure(out, students, arm, ipc, seed, cast(LabelKind, kind))
                click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
