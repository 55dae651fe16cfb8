"""Training one student: the same recipe for every arm, deterministic on one thread of a CPU, resumable."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from d4m_fast.errors import DamageError, NonFiniteError
from d4m_fast.evaluation.feeds import Batch, Feed
from d4m_fast.evaluation.parallel import Ranks, begin_statistics, norms_of, pass_part, running_statistics
from d4m_fast.evaluation.protocols import Protocol
from d4m_fast.evaluation.targets import ClassSelector
from d4m_fast.fingerprints import derive_seed
from d4m_fast.storage import files
from d4m_fast.wording import first_line

DIGEST = 32  # bytes of SHA-256 before a checkpoint's own
CHECKPOINT_SECONDS = 20.0  # of training at most that a kill takes, where an epoch is shorter


@dataclass(frozen=True, slots=True)
class Execution:
    """Device and precision of a student's training, which change its numbers by rounding alone.

    Attributes:
        autocast: precision of the forward pass on a GPU; None is float32.
        compiles: whether torch.compile makes it.
        ranks: processes that train it together.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: torch.dtype | None = None
    compiles: bool = False
    ranks: Ranks = field(default_factory=Ranks)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass, of students and of teachers that label their batches."""
        return contextlib.nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)


@dataclass(slots=True)
class Curve:
    """Course of a training: mean loss of each epoch, and test accuracy in percent after the epochs validated."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)


def fit(
    student: nn.Module,
    feed: Feed,
    protocol: Protocol,
    *,
    name: str,
    seed: int,
    batches_per_epoch: int,
    select: ClassSelector,
    validate: Callable[[nn.Module], float],
    execution: Execution,
    checkpoint: Path,
) -> Curve:
    """Train a student from where its checkpoint stands, or from the start.

    Args:
        name: of the student, which may have a rate of its own.
        seed: of the order of the images and of their augmentation.
        select: cuts logits to the classes evaluated.
        validate: returns a student's test accuracy.
        checkpoint: file that holds the state after an epoch; removed by the caller once the result is kept.

    Raises:
        NonFiniteError: the loss of an epoch is NaN or infinite.
        DamageError: the checkpoint is not what was written.
        PreflightError: it cannot be written; the one before stays.
    """
    optimiser = optimiser_of(student, protocol, protocol.lr_of(name))
    # Apart from the stream of the initial weights, whose length depends on the width of the student.
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment"))
    state = _State(student, optimiser, generator)
    step_of = Step(student, optimiser, protocol, select, execution)
    saved_at, ranks = time.monotonic(), execution.ranks
    state.restore(checkpoint, ranks)
    for epoch in range(state.epoch, protocol.epochs):
        student.train()
        if ranks.size > 1:  # dropout of other images is drawn anew; by epoch, so that no process has a state to keep
            torch.manual_seed(derive_seed(seed, "dropout", ranks.rank, epoch))
        total, images = torch.zeros((), device=execution.device), 0
        for index, batch in enumerate(feed.epoch(epoch, generator)):
            units = batches_per_epoch if protocol.lr_unit == "step" else 1
            step = epoch * units + (index if protocol.lr_unit == "step" else 0)
            for group in optimiser.param_groups:
                group["lr"] = protocol.lr_at(name, step, protocol.epochs * units)
            total += step_of(batch) * batch.size
            images += batch.size
        state.curve.losses.append(_finite(float(total) / images, epoch))
        ranks.require_equal(student, epoch)
        state.epoch = epoch + 1
        if protocol.is_validated(epoch):
            state.curve.accuracies.append((epoch, validate(student.eval())))
        is_last = state.epoch == protocol.epochs
        if ranks.rank == 0 and not is_last and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            state.save(checkpoint)
            saved_at = time.monotonic()
    student.eval()
    return state.curve


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        advice = "take a smaller rate (--override lr=...), or --autocast none; students that are finished are kept"
        raise NonFiniteError("student", f"the loss of epoch {epoch + 1}", advice=advice)
    return loss


def optimiser_of(student: nn.Module, protocol: Protocol, lr: float) -> torch.optim.Optimizer:
    """Return AdamW over the parameters; without weight decay on what is no weight matrix, if the recipe says so."""
    # Fused: one call for all parameters instead of a dozen for each of them.
    if protocol.decays_all:
        return torch.optim.AdamW(
            student.parameters(), lr, betas=protocol.betas, weight_decay=protocol.weight_decay, fused=True
        )
    decayed, undecayed = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in student.named_parameters():
        # SRe2L's get_parameters: tensors named "weight" with more than one dimension.
        (decayed if "weight" in name and parameter.ndim > 1 else undecayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": protocol.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr, betas=protocol.betas, fused=True)


@dataclass(frozen=True, slots=True)
class Step:
    """Step of the optimiser over a batch, in the parts that the protocol prescribes.

    Several processes compute their own parts, and take the step that one process would take with all of them.
    """

    student: nn.Module
    optimiser: torch.optim.Optimizer
    protocol: Protocol
    select: ClassSelector
    execution: Execution

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss of the whole batch, detached."""
        self.optimiser.zero_grad()
        total, ranks = torch.zeros((), device=batch.pixels.device), self.execution.ranks
        parts = list(parts_of(self.protocol, batch.size))
        own, norms = ranks.share(len(parts)), [] if ranks.size == 1 else norms_of(self.student)
        first_row = parts[own.start][0].start if own else 0
        begin_statistics(norms, ranks)
        for index, (part, weight, moves_statistics) in enumerate(parts):
            if index not in own:
                with _momentum(self.student, self.protocol, moves_statistics):
                    pass_part(norms)
                continue
            rows = slice(part.start - first_row, part.stop - first_row)
            pixels = batch.pixels[rows]
            with _momentum(self.student, self.protocol, moves_statistics), self.execution.precision():
                logits = self.select(self.student(pixels)).float()
            loss = batch.targets.loss(logits, rows)
            (loss if weight == 1 else loss * weight).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * len(pixels) / batch.size
        if ranks.size > 1:
            ranks.add_up([*self._gradients(), *running_statistics(norms), total])
        self.optimiser.step()
        return total

    def _gradients(self) -> list[torch.Tensor]:
        """Return the gradients of all parameters; zeros where this process had none, as of an empty share."""
        gradients = []
        for parameter in self.student.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        return gradients


def own_rows(protocol: Protocol, ranks: Ranks, n: int) -> slice:
    """Return the rows of a batch that this process computes.

    Where it has none, the first row, of which nothing is computed: no other code need know of empty batches.
    """
    parts = [part for part, _, _ in parts_of(protocol, n)]
    own = ranks.share(len(parts))
    return slice(parts[own.start].start, parts[own.stop - 1].stop) if own else slice(0, 1)


def parts_of(protocol: Protocol, n: int) -> Iterator[tuple[slice, float, bool]]:
    """Yield the parts of a batch that go through the student together.

    Each has its weight in the gradient, and whether it moves the running statistics of batch normalisation. The loss
    of a micro-batch is its mean divided by the number of micro-batches of a full batch, as the authors' loops have it.
    """
    if protocol.micro_batch is None and protocol.bn_batch is None:
        yield slice(0, n), 1.0, True
        return
    micro = n if protocol.micro_batch is None else protocol.micro_batch
    full = max(size for _, size in protocol.batch_size)
    accumulations = 1 if protocol.micro_batch is None else max(full // micro, 1)
    for start in range(0, n, micro):
        length = min(micro, n - start)
        chunk = length if protocol.bn_batch is None else protocol.bn_batch
        for offset in range(0, length, chunk):
            rows = slice(start + offset, start + min(offset + chunk, length))
            moves = offset == 0 or protocol.running_stats != "first"
            yield rows, (rows.stop - rows.start) / length / accumulations, moves


@contextmanager
def _momentum(student: nn.Module, protocol: Protocol, moves_statistics: bool) -> Iterator[None]:
    """Give batch normalisation the momentum of a part: none, its own, or that of two equal updates in one."""
    if moves_statistics and protocol.running_stats != "twice":
        yield
        return
    norms = [module for module in student.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm, momentum in zip(norms, momenta, strict=True):
        # Two updates with the same batch: 1 - (1 - m)^2, which is what RDED's second forward pass comes to.
        norm.momentum = 0.0 if not moves_statistics else None if momentum is None else 1 - (1 - momentum) ** 2
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@dataclass(slots=True)
class _State:
    """Everything that a training goes on with."""

    student: nn.Module
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    epoch: int = 0
    curve: Curve = field(default_factory=Curve)

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "student": self.student.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "generator": self.generator.get_state(),
                "dropout": torch.get_rng_state(),  # of PyTorch's own generator, which dropout draws from
                "epoch": self.epoch,
                "losses": self.curve.losses,
                "accuracies": self.curve.accuracies,
            },
            buffer,
        )
        # torch.load looks at no checksum of what it reads.
        data = buffer.getvalue()
        files.write_bytes(path, hashlib.sha256(data).digest() + data)

    def restore(self, path: Path, ranks: Ranks) -> None:
        """Go on from a checkpoint, if there is one: that of the first process, in all of them."""
        data = ranks.from_first(lambda: files.read_regular(path) if path.is_file() else None)
        if data is None:
            return
        try:
            if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
                raise ValueError("it is not what its checksum says")
            # Not to the device that it was saved from, which is another process's.
            saved = torch.load(io.BytesIO(data[DIGEST:]), map_location="cpu", weights_only=True)
            self.student.load_state_dict(saved["student"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.generator.set_state(saved["generator"])
            torch.set_rng_state(saved["dropout"])
        except (EOFError, KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = first_line(error)
            raise DamageError(f"{path}: not a student's checkpoint ({reason}); remove it and evaluate again") from error
        self.epoch = saved["epoch"]
        self.curve = Curve(saved["losses"], [tuple(pair) for pair in saved["accuracies"]])
