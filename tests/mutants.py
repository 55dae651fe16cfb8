"""Runtimes with something wrong, each of which a certification must find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.signature import Component

Fault = Callable[[Runtime, Tensors, Tensors], Tensors]


class Mutant:
    """A runtime; `fault` sees it, this call's inputs and the last call's outputs."""

    def __init__(self, runtime: Runtime, fault: Fault, dtype: torch.dtype) -> None:
        self._runtime, self._fault = runtime, fault
        self._last: Tensors = {}
        self.device, self.dtype = runtime.device, dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        outputs = self._fault(self._runtime, dict(inputs), self._last)
        self._last = dict(self._runtime(inputs))
        return outputs


def mutate(networks: Networks, component: Component, fault: Fault, dtype: torch.dtype = torch.float32) -> Networks:
    """Networks of which one has a fault; the others are right, and round to fp16 where that is the dtype."""

    def open_runtime(name: Component) -> Runtime:
        plain = networks.runtime(name)
        right = Mutant(plain, correct, dtype) if dtype == torch.float32 else Mutant(plain, rounded, dtype)
        return Mutant(right, fault, dtype) if name == component else right

    return networks.with_runtimes(open_runtime)


def correct(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    return runtime(inputs)


def rounded(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    """What fp16 does, but for its sums."""
    given = {name: x.half().float() if x.is_floating_point() else x for name, x in inputs.items()}
    return {name: x.half() for name, x in runtime(given).items()}


def swapped_halves(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    """Of guidance; where there is one row, nothing can be swapped."""
    return {name: torch.cat(x.chunk(2)[::-1]) for name, x in runtime(inputs).items()}


def permuted_batch(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    return {name: x.roll(1, 0) for name, x in runtime(inputs).items()}


def stale_buffer(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    """The answer to the question before, if it had the same shape."""
    outputs = runtime(inputs)
    fits = all(name in last and last[name].shape == x.shape for name, x in outputs.items())
    return last if fits else outputs


def shifted_timestep(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    return runtime({**inputs, "timestep": inputs["timestep"] + 20})


def overflow(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    """One value beyond fp16's range."""
    outputs = {name: x.clone() for name, x in runtime(inputs).items()}
    for x in outputs.values():
        x[(0,) * x.ndim] = torch.inf
    return outputs


def half(runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
    """fp16 where fp32 was asked for."""
    return {name: x.float() for name, x in rounded(runtime, inputs, last).items()}


class Exaggerated:
    """PyTorch's own half precision of a network, its error multiplied."""

    def __init__(self, model: Path, component: Component, factor: float) -> None:
        self._factor = factor
        self._exact, self._half = (
            open_eager(model, component, torch.device("cpu"), dtype) for dtype in (torch.float32, torch.float16)
        )

    def __call__(self, runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
        half = self._half(inputs)
        return {name: x + self._factor * (half[name].float() - x) for name, x in self._exact(inputs).items()}


class Overwriting:
    """As a captured graph has it: every answer in the same memory, which the next call writes to."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.Size], torch.Tensor] = {}

    def __call__(self, runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
        outputs = runtime(inputs)
        for name, x in outputs.items():
            self._buffers.setdefault((name, x.shape), x.clone()).copy_(x)
        return {name: self._buffers[name, x.shape] for name, x in outputs.items()}


class Drifting:
    """Each answer a little further off than the one before."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, runtime: Runtime, inputs: Tensors, last: Tensors) -> Tensors:
        self._calls += 1
        return {name: x * (1 + 0.01 * self._calls) for name, x in runtime(inputs).items()}
