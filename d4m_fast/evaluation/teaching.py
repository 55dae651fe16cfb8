"""Training of a teacher where none exists: resumable after every epoch, bit-equal on a CPU of as many threads."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import nn

from d4m_fast.errors import ModelError, RunDirectoryError
from d4m_fast.evaluation.augment import flipped, shifted
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.teacher_check import check_teacher
from d4m_fast.evaluation.teachers import WEIGHTS, load_teacher, save_teacher
from d4m_fast.evaluation.views import to_pixels
from d4m_fast.fingerprints import derive_seed
from d4m_fast.storage import files
from d4m_fast.storage.locks import LOCK_FILES
from d4m_fast.storage.state import TEACHING, read_state, require_state, write_state

RECORD = "teaching.json"
MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 0.9, 5e-4, 0.1
CONVNET3_WIDTH = 128  # as published
SHIFT_PART = 8  # of the side: 4 pixels of 32, the random crop with padding of He et al. (2016)
# Those of PyTorch's OneCycleLR (Smith & Topin, 2018).
RISING_PART, FIRST_PART, LAST_PART = 0.3, 1 / 25, 1 / 25 / 1e4


@dataclass(frozen=True, slots=True, eq=False)
class Teaching:
    """A sized iterable of losses, one per epoch that is still to be trained. Iterating trains, and then saves.

    Attributes:
        folder: where the teacher is written, and its state after each epoch until it is.
        options: of the training: arch, epochs, resolution, flip, batch_size, lr, seed.
        classes: names in the order of the class ids.
        train, test: images, on any device; None where the data has no test images.
        fingerprint: of the data.
        device: where it is trained.
        trained: epochs that were trained before.
    """

    folder: Path
    options: Mapping[str, Any]
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet | None
    fingerprint: str
    device: torch.device
    trained: int = 0

    def __len__(self) -> int:
        return int(self.options["epochs"]) - self.trained

    def __iter__(self) -> Iterator[float]:
        record = open_record(self.folder, self.options, self.fingerprint)
        if record is not None and record["result"] is not None:
            return
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else [self.device]):
            yield from self._train(record)

    def _train(self, record: dict[str, Any] | None) -> Iterator[float]:
        torch.manual_seed(derive_seed(self.options["seed"], "teacher"))
        size, name = self.options["resolution"], self.options["arch"]
        model = build_student(name, classes=len(self.classes), image_size=size, width=CONVNET3_WIDTH).to(self.device)
        optimiser = torch.optim.SGD(
            model.parameters(), self.options["lr"], MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
        )
        first, seconds = 0, 0.0
        if record is not None:
            first, seconds = record["epoch"], record["seconds"]
            _restore(model, optimiser, self._checkpoint(record))
        data = self.train.to(self.device)
        for epoch in range(first, self.options["epochs"]):
            started = time.monotonic()
            loss = _run_epoch(model, optimiser, data, self.options, epoch)
            if not math.isfinite(loss):
                raise ModelError(f"teacher {name}: its loss is {loss} in epoch {epoch + 1}; take a smaller --lr")
            seconds += time.monotonic() - started
            record = self._save(model, optimiser, epoch + 1, seconds, loss)
            yield loss
        assert record is not None
        self._finish(model, record)

    def _checkpoint(self, record: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        path = self.folder / record["checkpoint"]
        with TEACHING.reading(path):
            data = files.read_regular(path)
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise TEACHING.damage(path, "it is not what its checksum says")
        return load(data)

    def _save(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, epoch: int, seconds: float, loss: float
    ) -> dict[str, Any]:
        """Write what the next epoch begins with, then the record that names it, and return the record."""
        name = f"epoch-{epoch:04}.safetensors"
        sha256 = files.write_bytes(self.folder / name, save(_tensors(model, optimiser)))
        record = {
            "options": dict(self.options),
            "data": self.fingerprint,
            "epoch": epoch,
            "seconds": seconds,
            "loss": loss,
            "checkpoint": name,
            "sha256": sha256,
            "result": None,
        }
        write_state(self.folder / RECORD, TEACHING, record)
        for path in self.folder.glob("epoch-*.safetensors"):
            if path.name != name:
                files.remove(path)
        return record

    def _finish(self, model: nn.Module, record: Mapping[str, Any]) -> None:
        """Write the teacher, and last the record that it is there."""
        size = self.options["resolution"]
        save_teacher(model, self.folder, self.classes, image_size=size, arch=self.options["arch"])
        teacher = load_teacher(self.folder).to(self.device)
        result: dict[str, Any] = {"images": len(self.train), "test_images": 0, "accuracy": None, "per_class": None}
        if self.test is not None:
            check = check_teacher(teacher, self.test.to(self.device), self.classes)
            result |= {"test_images": check.images, "accuracy": check.accuracy, "per_class": dict(check.per_class)}
        write_state(self.folder / RECORD, TEACHING, {**record, "result": {**result, "weights": teacher.sha256}})
        files.remove(self.folder / record["checkpoint"])


def open_record(folder: Path, options: Mapping[str, Any], data: str) -> dict[str, Any] | None:
    """Return the record of a teaching; None where it begins now.

    Raises:
        RunDirectoryError: the folder holds another teaching, or other things.
        DamageError: the record is damaged.
    """
    record = read_state(folder / RECORD, TEACHING)
    if record is None:
        # A teaching that was killed in its first epoch may have left half a file; `files.sweep` has removed it.
        foreign = [path.name for path in files.entries(folder) if path.name not in LOCK_FILES]
        if not all(name.startswith("epoch-") for name in foreign):
            raise RunDirectoryError(f"{folder}: holds {foreign[0]} and no teacher in training; choose another --out")
        return None
    saved, current = {**record["options"], "data": record["data"]}, {**options, "data": data}
    for name, value in current.items():
        if saved.get(name) != value:
            raise RunDirectoryError(
                f"{folder}: holds another teacher ({name} {saved.get(name)}, not {value}); choose another --out"
            )
    return record


def saved_result(folder: Path) -> dict[str, Any]:
    """Return the options, the seconds and the result of a finished teaching.

    Raises:
        DamageError: the record is missing or damaged, or the teacher is not the one that was recorded.
        ModelError: the teacher cannot be read.
    """
    record = require_state(folder / RECORD, TEACHING)
    if load_teacher(folder).sha256 != record["result"]["weights"]:
        raise TEACHING.damage(folder / WEIGHTS, "it is not what was recorded")
    return {**record["options"], "seconds": record["seconds"], "loss": record["loss"], **record["result"]}


def _run_epoch(
    model: nn.Module, optimiser: torch.optim.Optimizer, data: ImageSet, options: Mapping[str, Any], epoch: int
) -> float:
    """Train for one epoch and return the mean loss. It depends on nothing but its arguments, dropout included."""
    seed = derive_seed(options["seed"], "teacher", epoch)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    size, limit = min(options["batch_size"], len(data)), options["resolution"] // SHIFT_PART
    steps = len(data) // size  # a short last batch is left out: another one is in every epoch
    order = torch.randperm(len(data), generator=generator)
    total = torch.zeros((), device=data.images.device)
    model.train()
    for step in range(steps):
        rows = order[step * size : (step + 1) * size].to(data.images.device)
        for group in optimiser.param_groups:
            group["lr"] = options["lr"] * one_cycle(epoch * steps + step, options["epochs"] * steps)
        pixels = _augmented(data.images[rows], limit, options["flip"], generator)
        loss = F.cross_entropy(model(pixels), data.labels[rows], label_smoothing=LABEL_SMOOTHING)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        total += loss.detach()
    return float(total / steps)


def _augmented(images: torch.Tensor, limit: int, flip: bool, generator: torch.Generator) -> torch.Tensor:
    offsets = torch.randint(0, 2 * limit + 1, (2, len(images), 1), generator=generator)
    mirrored = torch.rand(len(images), generator=generator) < (0.5 if flip else 0)
    pixels = shifted(to_pixels(images), offsets.to(images.device), limit)
    return flipped(pixels, mirrored.to(images.device))


def one_cycle(step: int, steps: int) -> float:
    """Return the part of the largest learning rate in a step, as PyTorch's `OneCycleLR` with cosines has it."""
    peak, last = RISING_PART * steps - 1, steps - 1
    if step <= peak:
        return _between(FIRST_PART, 1.0, step / peak)
    return _between(1.0, LAST_PART, (step - peak) / (last - peak))


def _between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors[f"momentum.{index}"] = state["momentum_buffer"]
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _restore(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    weights, momenta = dict[str, torch.Tensor](), dict[int, dict[str, torch.Tensor]]()
    for name, value in tensors.items():
        kind, _, key = name.partition(".")
        if kind == "model":
            weights[key] = value
        else:
            momenta[int(key)] = {"momentum_buffer": value.clone()}
    model.load_state_dict(weights)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": momenta})
