"""Students that several processes train together, by gloo, and the same ones that one process trains."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from evaluation.exams import exam, task
from torch import nn
from torch._C._distributed_c10d import TCPStore
from torch.nn.parallel import DistributedDataParallel

from d4m_fast.config.choices import Regime
from d4m_fast.errors import D4MError, ModelError
from d4m_fast.evaluation import tasks, train
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.feeds import Batch, OnlineFeed
from d4m_fast.evaluation.parallel import Ranks, joined, shared_protocol
from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.targets import HardTargets
from d4m_fast.evaluation.train import Execution, Step, optimiser_of

# Batches of 7 of 30 images: shares of 4 and 3, and a last batch of 2, of which the second process has none.
UNEVEN = {"epochs": 3, "batch_size": ((1, 7),)}
CROPPED = {"crop": (0.5, 1.0), "patches": 2, "shift": 0}
NORMED = {**UNEVEN, "bn_batch": 4}
CASES: Mapping[str, tuple[Regime, str, dict[str, Any]]] = {
    "hard": ("hard", "group", UNEVEN),
    "online": ("online", "group", UNEVEN),
    "fixed": ("fixed", "group", UNEVEN),
    "fixed-replayed": ("fixed", "group", {**UNEVEN, "stored_epochs": 1}),
    "mixed-hard": ("hard", "group", {**UNEVEN, "mixes_hard_labels": True}),
    "cropped": ("online", "group", {**UNEVEN, **CROPPED}),
    "unmixed": ("online", "group", {**UNEVEN, "cutmix": 0.0}),
    "accumulated": ("online", "group", {"epochs": 3, "batch_size": ((1, 14),), "micro_batch": 5}),
    "norm": ("online", "batch", NORMED),
    "norm-first": ("hard", "batch", {**NORMED, "running_stats": "first"}),
    "norm-twice": ("fixed", "batch", {**NORMED, "running_stats": "twice"}),
    "norm-cumulative": ("hard", "cumulative", NORMED),
    "norm-small-parts": ("hard", "batch", {**NORMED, "bn_batch": 2}),
    "norm-accumulated": (
        "hard",
        "batch",
        {"epochs": 3, "batch_size": ((1, 14),), "micro_batch": 7, "bn_batch": 4, "running_stats": "first"},
    ),
    "norm-micro-batches": ("hard", "batch", {"epochs": 3, "batch_size": ((1, 14),), "micro_batch": 7}),
}
QUICK_CASES = ("hard", "fixed", "norm")


class Double(nn.Module):
    """A network in double precision, so that sums in another order stay equal to 1e-6 through AdamW."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(pixels.double())
        return logits


def build(name: str, *, classes: int, image_size: int, width: int) -> nn.Module:
    """A network of group normalisation, or of batch normalisation (with a mean over all batches), or with dropout."""
    if name == "dropout":
        side = 3 * image_size**2
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(side, classes))
    network = ConvNet(classes, width=4, depth=2, norm="instance" if name == "group" else "batch", image_size=image_size)
    if name == "cumulative":
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
    return Double(network)


def trained(name: str, work: Path, ranks: Ranks, processes: int = 1) -> dict[str, Any]:
    """Losses, accuracies and weights of a case; one process has the `bn_batch` that so many make of it."""
    regime, student, changes = CASES[name]
    shared = dataclasses.replace(exam(work / name, **changes), execution=Execution(ranks=ranks))
    if student != "group":
        protocol = shared_protocol(shared.protocol, shared.batch_size("a"), processes)
        shared = dataclasses.replace(shared, protocol=protocol)
    with mock.patch.object(tasks, "build_student", build), tasks.one_thread(torch.device("cpu")):
        fitted, curve, _ = tasks.fitted_student(shared, task(regime, student=student), work / name / "checkpoint.pt")
    return {"losses": curve.losses, "accuracies": curve.accuracies, "weights": fitted.state_dict()}


def result_of(student: str, work: Path, ranks: Ranks, epochs: int = 6) -> dict[str, Any]:
    """Result of a task whose checkpoint is written after every epoch."""
    shared = exam(work, epochs=epochs, batch_size=((1, 7),))
    shared = dataclasses.replace(shared, execution=Execution(ranks=ranks))
    with mock.patch.object(tasks, "build_student", build), mock.patch.object(train, "CHECKPOINT_SECONDS", 0.0):
        return {**tasks.finish_task(shared, task("online", student=student)).to_json(), "seconds": 0}


def step_beside_ddp(images: int, ranks: Ranks) -> dict[str, Any]:
    """Gradients, weights and statistics after one step of ours, and of PyTorch's DistributedDataParallel."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(images, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 2, (images,), generator=generator)
    share = -(-images // ranks.size)
    own = slice(ranks.rank * share, min((ranks.rank + 1) * share, images))
    changes = {"batch_size": ((1, images),), "bn_batch": share, "running_stats": "first"}
    protocol = exam(Path(), **changes).protocol  # type: ignore[arg-type]
    outcomes = {}
    for name in ("ours", "theirs"):
        torch.manual_seed(0)
        network = build_student("convnet-2-8-bn", classes=2, image_size=16, width=0).train()
        optimiser = optimiser_of(network, protocol, 1e-3)
        if name == "ours":
            step = Step(network, optimiser, protocol, lambda x: x, Execution(ranks=ranks))
            loss = step(Batch(pixels[own], HardTargets(labels[own]), images))
        else:
            parallel = DistributedDataParallel(network)  # which must live until the gradients are summed
            logits = parallel(pixels[own])
            # DDP takes the mean of the processes' gradients; that of all images' is wanted.
            loss = nn.functional.cross_entropy(logits, labels[own], reduction="sum") * ranks.size / images
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss = loss.detach() / ranks.size
            ranks.add_up([loss])
        gradients = {key: value.grad for key, value in network.named_parameters()}
        outcomes[name] = {"loss": loss, "gradients": gradients, "weights": network.state_dict()}
    return outcomes


def dying(at: int, end: Callable[[], object]) -> Any:
    """A feed's `epoch` that does something else before the second batch of one."""

    def wrap(epoch_of: Callable[..., Iterator[Batch]]) -> Callable[..., Iterator[Batch]]:
        def epoch(self: object, number: int, generator: torch.Generator) -> Iterator[Batch]:
            for index, batch in enumerate(epoch_of(self, number, generator)):
                if (number, index) == (at, 1):
                    end()
                yield batch

        return epoch

    return wrap


def _fail() -> None:
    raise ModelError("teacher: its logits are NaN or infinite; take other weights")


def work_of(name: str, folder: Path, ranks: Ranks) -> object:
    """Do what a test asks of one of its processes."""
    last = ranks.rank == (0 if name == "first-killed" else ranks.size - 1)
    if name == "quick":
        steps = {f"step-{images}": step_beside_ddp(images, ranks) for images in (8, 7)}
        return {**steps, **{case: trained(case, folder, ranks) for case in QUICK_CASES}}
    if name == "all":
        return {case: trained(case, folder, ranks) for case in CASES}
    if name == "results":
        return {student: result_of(student, folder, ranks) for student in ("group", "dropout")}
    if name == "apart":
        network = nn.Linear(3, 3)
        nn.init.constant_(network.weight, 1.0 + ranks.rank)
        ranks.require_equal(network, 4)
    if name == "late" and last:
        time.sleep(20)
    if name in ("late", "refused"):
        return ranks.from_first(_fail if name == "refused" else lambda: 1)
    end = _fail if name == "failed" else lambda: os.kill(os.getpid(), 9)
    epoch = dying(3, end)(OnlineFeed.epoch) if last else OnlineFeed.epoch
    with mock.patch.object(OnlineFeed, "epoch", epoch):
        return work_of("results", folder, ranks)


def main(name: str, folder: Path) -> None:
    """One process: its answer in a file, an error as one line and a code."""
    torch.set_num_threads(1)
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    try:
        with joined(ranks, timedelta(seconds=3 if name == "late" else 60)):
            answer = work_of(name, folder, ranks)
    except D4MError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    torch.save(answer, folder / f"{name}-{ranks.rank}.pt")


def launch(name: str, folder: Path, ranks: int = 2) -> tuple[list[Any], list[int], list[str]]:
    """Answers, exit codes and lines of error of so many processes; answers of those that have one."""
    folder.mkdir(parents=True, exist_ok=True)
    # As torchrun has it, the store is of none of the processes.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    code = f"from evaluation.together import main; from pathlib import Path; main({name!r}, Path({str(folder)!r}))"
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, **shared, "PYTHONPATH": os.pathsep.join(paths), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            env={**environment, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    lines = list[str]()
    for process in processes:
        lines += process.communicate(timeout=300)[1].splitlines()
    files = [folder / f"{name}-{rank}.pt" for rank in range(ranks)]
    answers = [torch.load(file) for file in files if file.exists()]
    for file in files:
        file.unlink(missing_ok=True)
    return answers, [process.returncode for process in processes], lines
