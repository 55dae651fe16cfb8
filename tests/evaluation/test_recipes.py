"""One step of the published recipes beside short transcriptions of the authors' loops, which exist only here."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d4m_fast.evaluation.feeds import Batch
from d4m_fast.evaluation.protocols import PROTOCOLS, Protocol
from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.targets import HardTargets, SoftTargets, log_probabilities
from d4m_fast.evaluation.train import Execution, Step, optimiser_of, parts_of

CLASSES, SIDE = 10, 32


def small(name: str, **changes: object) -> Protocol:
    """A protocol with a batch of twelve images of 32 pixels, in the proportions of the published one."""
    return dataclasses.replace(PROTOCOLS[name], resolution=SIDE, **changes)  # type: ignore[arg-type]


def student() -> nn.Module:
    torch.manual_seed(0)
    return build_student("resnet18", classes=CLASSES, image_size=SIDE, width=0)


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, SIDE, SIDE, generator=generator), torch.randn(n, CLASSES, generator=generator) * 5


def our_step(protocol: Protocol, network: nn.Module, pixels: torch.Tensor, logits: torch.Tensor) -> float:
    targets = SoftTargets(log_probabilities(logits, protocol.temperature), protocol.temperature, protocol.scales_loss)
    optimiser = optimiser_of(network, protocol, protocol.lr_of("resnet18"))
    step = Step(network.train(), optimiser, protocol, lambda x: x, Execution())
    return float(step(Batch(pixels, targets)))


def published_optimiser(network: nn.Module) -> torch.optim.Optimizer:
    """SRe2L's get_parameters, and its AdamW."""
    decayed, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in network.named_parameters():
        if len(parameter.shape) <= 1 or "weight" not in name:
            others.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0}, {"params": decayed}]
    return torch.optim.AdamW(groups, lr=0.001, betas=(0.9, 0.999), weight_decay=0.01)


def fkd_step(network: nn.Module, pixels: torch.Tensor, logits: torch.Tensor, accumulation: int, micro: int) -> float:
    """SRe2L/validate/train_FKD.py: train(), of one batch."""
    network.train()
    optimiser = published_optimiser(network)
    loss_function = nn.KLDivLoss(reduction="batchmean")
    optimiser.zero_grad()
    total = 0.0
    for start in range(0, len(pixels), micro):
        partial = pixels[start : start + micro]
        output = F.log_softmax(network(partial) / 20, dim=1)
        soft = F.softmax(logits[start : start + micro] / 20, dim=1)
        loss = loss_function(output, soft)
        total += loss.item() * len(partial)
        (loss / accumulation).backward()
    optimiser.step()
    return total / len(pixels)


def rded_step(network: nn.Module, pixels: torch.Tensor, logits: torch.Tensor) -> float:
    """RDED/validation/main.py: train(), of one batch, whose first forward pass is for a printed accuracy."""
    network.train()
    optimiser = published_optimiser(network)
    with torch.no_grad():
        network(pixels)
    soft = F.softmax(logits / 20, dim=1)
    loss = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(network(pixels) / 20, dim=1), soft)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return float(loss.detach())


def assert_alike(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        scale = max(float(other.grad.abs().max()), 1e-3)
        assert float((parameter.grad - other.grad).abs().max()) < 1e-5 * max(scale, 1), name
        clear = other.grad.abs() > 1e-4  # where AdamW's first step, of one size, has a certain sign
        moved = (parameter - other).detach().abs()[clear]
        assert (moved < 1e-5).all(), name  # weight decay included
    for (name, buffer), statistic in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        if buffer.is_floating_point():
            assert float((buffer - statistic).abs().max()) < 1e-5, name


@pytest.mark.parametrize("images", [12, 9])
def test_a_step_of_fkd(images: int) -> None:
    protocol = small("fkd", batch_size=((1, 12),), micro_batch=6)
    ours, theirs = student(), student()
    pixels, logits = batch(images)
    loss = our_step(protocol, ours, pixels, logits)
    assert loss == pytest.approx(fkd_step(theirs, pixels, logits, 2, 6), abs=1e-5)
    assert_alike(ours, theirs)


def test_a_step_of_d4m_on_data_parallel_gpus() -> None:
    protocol = small("d4m", batch_size=((1, 12),), micro_batch=6, bn_batch=2)
    ours, theirs = student(), student()
    pixels, logits = batch(12)
    our_step(protocol, ours, pixels, logits)
    data_parallel_step(theirs, pixels, logits)
    assert_alike(ours, theirs)


def data_parallel_step(network: nn.Module, pixels: torch.Tensor, logits: torch.Tensor) -> None:
    """nn.DataParallel over three devices: replicas normalise their own chunk, and only the first one's buffers stay."""
    network.train()
    optimiser = published_optimiser(network)
    optimiser.zero_grad()
    for start in (0, 6):
        outputs = []
        for index, chunk in enumerate(pixels[start : start + 6].chunk(3)):
            replica = copy.deepcopy(dict(network.named_buffers())) if index else dict(network.named_buffers())
            outputs.append(torch.func.functional_call(network, replica, chunk))
        soft = F.softmax(logits[start : start + 6] / 20, dim=1)
        loss = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(torch.cat(outputs) / 20, dim=1), soft) / 2
        loss.backward()
    optimiser.step()


@pytest.mark.parametrize("images", [12, 5])
def test_a_step_of_rded(images: int) -> None:
    ours, theirs = student(), student()
    pixels, logits = batch(images)
    loss = our_step(small("rded"), ours, pixels, logits)
    assert loss == pytest.approx(rded_step(theirs, pixels, logits), abs=1e-5)
    assert_alike(ours, theirs)


def test_the_tests_tell_recipes_apart() -> None:
    pixels, logits = batch(12)
    theirs = student()
    fkd_step(theirs, pixels, logits, 2, 6)
    for protocol in (
        small("fkd", batch_size=((1, 12),), micro_batch=None),
        small("fkd", batch_size=((1, 12),), micro_batch=6, decays_all=True, weight_decay=0.5),
        small("fkd", batch_size=((1, 12),), micro_batch=6, temperature=4.0),
        small("d4m", batch_size=((1, 12),), micro_batch=6, bn_batch=3),
    ):
        ours = student()
        our_step(protocol, ours, pixels, logits)
        with pytest.raises(AssertionError):
            assert_alike(ours, theirs)


@pytest.mark.parametrize(("name", "horizon"), [("fkd", 1), ("d4m", 1), ("rded", 2)])
def test_rates_are_those_of_the_published_schedule(name: str, horizon: int) -> None:
    optimiser = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.001)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1.0 + math.cos(math.pi * step / horizon / 300)) if step <= 300 else 0
    )
    for epoch in range(300):
        assert PROTOCOLS[name].lr_at("resnet18", epoch, 300) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-9)
        optimiser.step()
        schedule.step()


def test_mixed_hard_labels_count_by_their_area() -> None:
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(3))
    labels, others = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 2, 1, 0])
    loss = HardTargets(labels, others, 0.25).loss(logits, slice(0, 4))
    probabilities = np.asarray(logits.double().softmax(1).log())
    expected = -np.mean(
        [0.75 * row[a] + 0.25 * row[b] for row, a, b in zip(probabilities, labels, others, strict=True)]
    )
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_soft_loss_is_the_divergence() -> None:
    generator = torch.Generator().manual_seed(4)
    student_logits, teacher_logits = torch.randn(2, 6, CLASSES, generator=generator).mul(3).unbind(0)
    for temperature, scales in ((4.0, True), (20.0, False)):
        targets = SoftTargets(log_probabilities(teacher_logits, temperature), temperature, scales)
        p, q = (np.asarray((x.double() / temperature).softmax(1)) for x in (teacher_logits, student_logits))
        expected = (p * np.log(p / q)).sum(1).mean() * (temperature**2 if scales else 1)
        assert float(targets.loss(student_logits, slice(0, 6))) == pytest.approx(expected, rel=1e-5)


def test_soft_loss_survives_a_certain_teacher() -> None:
    targets = SoftTargets(log_probabilities(torch.tensor([[1e4, 0.0]]), 1.0), 1.0, scales_loss=True)
    assert torch.isfinite(targets.loss(torch.zeros(1, 2), slice(0, 1)))


@pytest.mark.parametrize("n", [1024, 784, 672, 500, 5])
def test_parts_of_a_batch_cover_it_once(n: int) -> None:
    for protocol in PROTOCOLS.values():
        parts = list(parts_of(protocol, n))
        rows = [row for part, _, _ in parts for row in range(part.start, part.stop)]
        assert rows == list(range(n))
        if protocol.bn_batch is not None:
            assert max(part.stop - part.start for part, _, _ in parts) <= protocol.bn_batch
            assert sum(moves for _, _, moves in parts) == math.ceil(n / 512)
