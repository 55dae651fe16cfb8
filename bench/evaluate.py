"""How fast are students trained, beside the data path of the field's scripts?

    export PYTHONPATH=tests D4M_SHARED=...
    for case in convnet3 resnet18; do python bench/evaluate.py $case >> bench/evaluate.jsonl; done

Both sides train one student, of the same first weights, by the recipe `fkd` (KL at 20, AdamW, CutMix) on stored labels
of CIFAR-10 images by one network. The official one reads them as SRe2L does: PNG files through Pillow in a DataLoader,
crop and flip per image, one file of labels per batch by torch.load; its student is as PyTorch builds it. Ours has the
set and the labels in memory. Epochs are measured in processor time of one thread, which other programs on the machine
disturb less than a clock does; the two alternate, each in a process of its own, and figures are medians of all rounds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from fkd_layout import replay_fkd, write_fkd
from PIL import Image
from torch import nn

from d4m_fast.allocator import keep_freed_memory
from d4m_fast.evaluation.convnet import ConvNet, quicken
from d4m_fast.evaluation.feeds import OnlineFeed, StoredFeed
from d4m_fast.evaluation.images import ImageSet, load_images
from d4m_fast.evaluation.label_store import LabelStore, labels_identity, open_labels, write_labels
from d4m_fast.evaluation.protocols import PROTOCOLS, Protocol
from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.teachers import labeller
from d4m_fast.evaluation.train import Execution, Step, optimiser_of
from d4m_fast.sources.dataset import open_source

CLASSES = 10
EPOCHS = 2  # of labels: one to warm up, one to measure


@dataclass(frozen=True)
class Case:
    """A student, the images it learns from, and how many times as fast as the official path it should be trained."""

    title: str
    student: str
    width: int
    side: int
    per_class: int
    batch: int
    aim: float

    @property
    def protocol(self) -> Protocol:
        recipe = PROTOCOLS["fkd"]
        sizes = {"resolution": self.side, "batch_size": ((1, self.batch),), "epochs": EPOCHS, "stored_epochs": EPOCHS}
        return dataclasses.replace(recipe, micro_batch=None, **sizes)  # type: ignore[arg-type]

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return build_student(self.student, classes=CLASSES, image_size=self.side, width=self.width)


CASES = {
    "convnet3": Case("ConvNet-3, 32 wide, at 32 pixels", "convnet3", 32, 32, 50, 50, 3.0),
    "resnet18": Case("ResNet-18 at 64 pixels", "resnet18", 0, 64, 10, 50, 1.5),
}


def write_set(case: Case, root: Path) -> None:
    """Images as PNG in class folders, and their labels in SRe2L's layout."""
    with tarfile.open(Path(os.environ["D4M_SHARED"]) / "cifar10-imagefolder.tar") as tar:
        tar.extractall(root / "cifar10", filter="data")
    for folder in sorted((root / "cifar10" / "train").iterdir()):
        target = root / "images" / folder.name
        target.mkdir(parents=True)
        for path in sorted(folder.iterdir())[: case.per_class]:
            image = Image.open(path).resize((case.side, case.side), Image.Resampling.BICUBIC)
            image.save(target / path.with_suffix(".png").name)
    torch.manual_seed(1)
    write_fkd(root / "fkd", root / "images", EPOCHS, case.batch, torch.inference_mode()(case.build().eval()))


def read_set(case: Case, root: Path) -> tuple[ImageSet, LabelStore]:
    """The images, and labels of them by the same network, which are made by the first call."""
    images = load_images(open_source(str(root / "images"), prompts_needed=False), case.side)
    identity = labels_identity(images, case.protocol, "untrained", range(CLASSES), 0, None)
    label = torch.inference_mode()(case.build().eval())
    if open_labels(root / "labels", images, identity) is None:
        for _ in write_labels(root / "labels", images, case.protocol, label, identity, batch_size=case.batch):
            pass
    store = open_labels(root / "labels", images, identity)
    assert store is not None
    return images, store


def our_step(case: Case, student: nn.Module) -> Step:
    if isinstance(student, ConvNet):
        quicken(student)
    else:  # as `tasks.new_student` has it
        student.to(memory_format=torch.channels_last)
    protocol = case.protocol
    return Step(student, optimiser_of(student, protocol, 1e-3), protocol, lambda logits: logits, Execution())


def measured(batches: Iterable[Any], step: Callable[[Any], object]) -> float:
    """Seconds of processor time of an epoch, of which nothing is left in memory."""
    started = time.process_time()
    for batch in batches:
        step(batch)
    return time.process_time() - started


def ours(case: Case, root: Path) -> dict[str, float]:
    """Seconds of an epoch: whole, of its batches alone, and of the student's steps on batches made before."""
    torch.set_num_threads(1)
    keep_freed_memory()
    images, store = read_set(case, root)
    student = case.build().train()
    step, generator = our_step(case, student), torch.Generator()
    feed = StoredFeed(case.protocol, images, store, case.batch)
    whole = [measured(feed.epoch(epoch, generator), step) for epoch in range(EPOCHS)]
    fixed = list(feed.epoch(0, generator))
    teacher = case.build().eval().requires_grad_(False)
    label = labeller(teacher) if isinstance(teacher, ConvNet) else torch.inference_mode()(teacher)
    online = OnlineFeed(case.protocol, images, label, case.batch)
    return {
        "whole": whole[-1],
        "feed": measured(feed.epoch(1, generator), lambda _: None),
        "steps": measured(fixed, step),
        "online": measured(online.epoch(1, generator), step),
        "teacher": measured(fixed, lambda batch: label(batch.pixels)),
    }


def official(case: Case, root: Path) -> dict[str, float]:
    """Seconds of an epoch: whole, and of its batches alone."""
    torch.set_num_threads(1)
    student = case.build().train()
    named = list(student.named_parameters())
    decayed = [parameter for name, parameter in named if "weight" in name and parameter.ndim > 1]
    others = [parameter for name, parameter in named if not ("weight" in name and parameter.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, 1e-3)

    def step(batch: Any) -> None:
        pixels, logits = batch
        optimiser.zero_grad()
        prediction = F.log_softmax(student(pixels) / 20, dim=1)
        loss = F.kl_div(prediction, F.softmax(logits.float() / 20, dim=1), reduction="batchmean")
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    whole = [measured(batches, step) for batches in replay_fkd(root / "fkd", root / "images", case.batch)]
    feeds = [measured(pairs, lambda _: None) for pairs in replay_fkd(root / "fkd", root / "images", case.batch)]
    return {"whole": whole[-1], "feed": feeds[-1]}


def in_turn(case: Case, root: Path, rounds: int) -> list[dict[str, dict[str, float]]]:
    """Both sides, one after the other each in its process, `rounds` times."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as our_pool, ProcessPoolExecutor(1, spawn) as their_pool:
        return [
            {
                "ours": our_pool.submit(ours, case, root).result(),
                "official": their_pool.submit(official, case, root).result(),
            }
            for _ in range(rounds)
        ]


def summary(name: str, case: Case, rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    n = case.per_class * CLASSES

    def median(value: Callable[[dict[str, float], dict[str, float]], float]) -> float:
        return round(statistics.median(value(row["ours"], row["official"]) for row in rounds), 4)

    return {
        "case": name,
        "title": case.title,
        "images": n,
        "rounds": len(rounds),
        "load": round(os.getloadavg()[0], 1),
        "ours_per_second": median(lambda our, _: n / our["whole"]),
        "official_per_second": median(lambda _, their: n / their["whole"]),
        "ratio": median(lambda our, their: their["whole"] / our["whole"]),
        "ratios": [round(row["official"]["whole"] / row["ours"]["whole"], 2) for row in rounds],
        "feed_ratio": median(lambda our, their: their["feed"] / our["feed"]),
        "official_feed_share": median(lambda _, their: their["feed"] / their["whole"]),
        "outside_student": median(lambda our, _: 1 - our["steps"] / our["whole"]),
        "outside_student_and_teacher": median(lambda our, _: 1 - (our["steps"] + our["teacher"]) / our["online"]),
        "aim": case.aim,
    }


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(CASES)))
@click.option("--rounds", default=7, show_default=True)
def main(name: str, rounds: int) -> None:
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        write_set(case, Path(folder))
        read_set(case, Path(folder))  # makes the labels
        click.echo(json.dumps(summary(name, case, in_turn(case, Path(folder), rounds))))


if __name__ == "__main__":
    main()
