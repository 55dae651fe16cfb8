"""Steps of a noise schedule, either as rows of a table or as calls of diffusers' scheduler itself."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Terms = tuple[tuple[int, float], ...]
Tensors = Sequence[torch.Tensor] | Mapping[int, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """A call of the UNet and the update after it.

    With x_0 the noised start, x_i the sample before step i and e_i the noise predicted in step i, the UNet sees
    `input_scale` * x_i, and this step's result is the sum of c * x_j over `samples` plus the sum of c * e_j over
    `outputs`. A step that is not `guided` needs the conditional noise only. Where the scheduler itself is stepped, only
    `timestep` and `guided` are used.
    """

    timestep: float
    samples: Terms = ()
    outputs: Terms = ()
    guided: bool = True
    input_scale: float = 1.0


def combine(step: Step, samples: Tensors, outputs: Tensors) -> torch.Tensor:
    """Return a step's result from the samples x_j and the outputs e_j that it reads."""
    # The order of the terms and of the additions is part of the result's bits.
    terms = [(coefficient, samples[j]) for j, coefficient in step.samples]
    terms += [(coefficient, outputs[j]) for j, coefficient in step.outputs]
    total = torch.zeros_like(terms[0][1])
    for coefficient, tensor in terms:
        total = torch.add(total, tensor, alpha=coefficient)
    return total


@dataclass(frozen=True, slots=True)
class Stepper:
    """A diffusers scheduler that no table equals, called as its pipeline calls it.

    Attributes:
        scheduler: after `set_timesteps` and `set_begin_index`; never stepped itself, each batch steps a copy.
        timesteps: the run's, in the scheduler's own dtype.
        draws_noise: whether its step takes generators.
        reason: why no table equals it, in a few words.
        sensitive: whether it clips or amplifies rounding, so that only diffusers' own networks give diffusers' images.
    """

    scheduler: Any
    timesteps: torch.Tensor
    draws_noise: bool
    reason: str = ""
    sensitive: bool = False

    @property
    def name(self) -> str:
        return type(self.scheduler).__name__

    def begin(self, generators: list[torch.Generator] | None) -> Stepping:
        """Start a batch; `generators` has one for each row, where `draws_noise`."""
        # As the pipeline's `prepare_extra_step_kwargs` does: eta is its default, 0, whatever the scheduler's is.
        options: dict[str, Any] = {"eta": 0.0} if "eta" in parameters(self.scheduler) else {}
        if self.draws_noise:
            options["generator"] = generators
        return Stepping(copy.deepcopy(self.scheduler), self.timesteps, options)


@dataclass(frozen=True, slots=True)
class Stepping:
    """A scheduler on its way through one batch."""

    scheduler: Any
    timesteps: torch.Tensor
    options: dict[str, Any]

    def scale(self, sample: torch.Tensor, i: int) -> torch.Tensor:
        """Return what the UNet sees of x_i."""
        scaled: torch.Tensor = self.scheduler.scale_model_input(sample, self.timesteps[i])
        return scaled

    def step(self, output: torch.Tensor, i: int, sample: torch.Tensor) -> torch.Tensor:
        """Return x_(i+1) from e_i and x_i."""
        following: torch.Tensor = self.scheduler.step(
            output, self.timesteps[i], sample, **self.options, return_dict=False
        )[0]
        return following


def parameters(scheduler: Any) -> frozenset[str]:
    """Return the names of the parameters that a scheduler's step takes."""
    return frozenset(inspect.signature(scheduler.step).parameters)
