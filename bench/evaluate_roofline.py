"""Calculated, not measured: how fast an H100 can train ResNet-18 under an online ResNet-18 at 224 pixels.

    python bench/evaluate_roofline.py

Every operation of a step (views, CutMix, teacher, student forward and backward, AdamW) takes the longer of its bytes at
3.35 TB/s and its products at 60 % of 989 TFLOP/s, or 5 microseconds to be launched. Networks are float16 as under
--autocast fp16, views and weights float32. Operations are counted by torch.utils.flop_counter, bytes are those of the
tensors that go in and come out; batch normalisation reads its input twice. One line of JSON. What a card really does,
and which kernels fall short of it, `nsys profile --trace=cuda,nvtx --stats=true d4m-fast evaluate RUN --protocol rded
--regime online --student resnet18 --autocast fp16` shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torchvision.models import resnet18

from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.targets import SoftTargets, log_probabilities
from d4m_fast.evaluation.views import Mix, draw_views, mixed, render
from d4m_fast.kernels.roofline import ATTAINABLE, Machine

LAUNCH = 5e-6  # seconds
ADAMW_BYTES = 28  # per weight: weight, gradient and both moments read, all but the gradient written, float32
HALF_COPIES = 6  # per weight: read as float32, written as float16, by each autocast step
FEW = 8  # images on which views are counted


@dataclass
class Cost:
    """Sums over operations: seconds of the slower of both, and what each would take alone."""

    seconds: float = 0.0
    products: float = 0.0
    memory: float = 0.0
    launches: int = 0
    flops: float = 0.0
    bytes: float = 0.0

    def add(self, flops: float, traffic: float, machine: Machine, launches: int = 1) -> None:
        self.seconds += max(machine.seconds(traffic, flops), LAUNCH * launches)
        self.products += machine.seconds(0.0, flops)
        self.memory += machine.seconds(traffic)
        self.launches += launches
        self.flops += flops
        self.bytes += traffic


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Cost of every operation inside that makes new tensors; a batch of `FEW` stands for `scale` times as many."""

    def __init__(self, cost: Cost, machine: Machine, scale: float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost, self.machine, self.scale = cost, machine, scale

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named: dict[str, Any] = {} if kwargs is None else kwargs
        result = func(*args, **named)
        if func.is_view or func.overloadpacket in (torch.ops.aten.detach, torch.ops.aten.empty):
            return result
        reads = 2 if "batch_norm" in str(func) else 1
        traffic = reads * sum(_bytes((args, named))) + sum(_bytes(result))
        counted = flop_registry.get(func.overloadpacket)
        flops = 0 if counted is None else counted(*args, **named, out_val=result)
        self.cost.add(self.scale * flops, self.scale * traffic, self.machine)
        return result


def _bytes(values: Any) -> Iterator[int]:
    yield from (
        value.numel() * value.element_size() for value in tree_leaves(values) if isinstance(value, torch.Tensor)
    )


def step_cost(batch: int, machine: Machine) -> Cost:
    """Return the cost of a step of RDED's recipe."""
    protocol, cost = PROTOCOLS["rded"], Cost()
    images = torch.randint(0, 256, (FEW, 3, protocol.resolution, protocol.resolution), dtype=torch.uint8)
    views = draw_views(protocol, FEW, torch.Generator().manual_seed(0))
    with Counter(cost, machine, batch / FEW):
        mixed(render(images, views, protocol), Mix(torch.arange(FEW), torch.tensor([20, 180, 20, 180])))
    with torch.device("meta"):
        teacher, student = (network().half() for network in (resnet18, resnet18))
        pixels = torch.empty(batch, 3, protocol.resolution, protocol.resolution, dtype=torch.float16)
    with Counter(cost, machine):
        with torch.no_grad():
            known = log_probabilities(teacher.eval()(pixels), protocol.temperature)
        SoftTargets(known, protocol.temperature, scales_loss=False).loss(
            student(pixels).float(), slice(0, batch)
        ).backward()  # type: ignore[no-untyped-call]
    weights = sum(parameter.numel() for parameter in student.parameters())
    cost.add(0.0, float(weights) * (ADAMW_BYTES + 2 * HALF_COPIES), machine)
    return cost


def row(batch: int, machine: Machine = ATTAINABLE) -> dict[str, Any]:
    """Return images per second, and what limits them."""
    cost = step_cost(batch, machine)
    parts: dict[str, float] = {
        "memory": cost.memory,
        "products": cost.products,
        "launches": LAUNCH * cost.launches,
    }
    largest: Callable[[str], float] = parts.__getitem__
    return {
        "case": "H100",
        "batch": batch,
        "images_per_second": round(batch / cost.seconds),
        "gflops_per_image": round(cost.flops / batch / 1e9, 2),
        "mb_per_image": round(cost.bytes / batch / 1e6, 1),
        "ms_per_step": {name: round(1e3 * seconds, 2) for name, seconds in parts.items()},
        "limit": max(parts, key=largest),
    }


@click.command(help=__doc__)
@click.option("--batch", "batches", default="100,200", show_default=True, help="RDED's of 10 and of 50 per class.")
def main(batches: str) -> None:
    for batch in map(int, batches.split(",")):
        click.echo(json.dumps(row(batch)))


if __name__ == "__main__":
    main()
