"""Noise schedules as tables of coefficients, read off diffusers' own scheduler objects and checked against them.

Most samplers are linear: each new sample is a fixed combination of earlier samples and of earlier noise predictions.
Feeding a scheduler unit vectors instead of tensors reveals its coefficients, quirks included, and the denoising loop
becomes arithmetic that never leaves the device. Then table and scheduler take every step on the same random tensors;
where they differ, because the scheduler clips, thresholds or adds noise, a run steps the scheduler itself.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from d4m_fast.config.choices import Scheduler
from d4m_fast.engine.linearity import ADDS_NOISE, difference, is_finite, near, require_reproducible
from d4m_fast.engine.scheduler import open_scheduler, refusing_scheduler, train_timesteps
from d4m_fast.engine.stepping import Step, Stepper, Terms, parameters
from d4m_fast.errors import UsageError

# The guidance interval that guides every step, even where timesteps are no noise levels (EDM's are logarithms of
# sigmas).
WHOLE_SCHEDULE = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Start and steps of an image-to-image run; the start is `signal` * x + `noise` * N(0, I).

    Attributes:
        stepper: the scheduler to step, where the table does not equal it.
    """

    signal: float
    noise: float
    steps: tuple[Step, ...]
    stepper: Stepper | None = None

    def guided_calls(self, guidance: float) -> int:
        """Return the number of steps that run the UNet on two samples per image; all others run it on one."""
        return sum(step.guided for step in self.steps) * (guidance > 1)

    def last_use(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return the last step that reads sample x_j, and the last that reads output e_j: two maps from j."""
        samples, outputs = dict[int, int](), dict[int, int]()
        for i, step in enumerate(self.steps):
            for j, _ in step.samples:
                samples[j] = i
            for j, _ in step.outputs:
                outputs[j] = i
        return samples, outputs

    @property
    def sensitive(self) -> bool:
        """Whether only diffusers' own forward passes give diffusers' images: the scheduler clips or amplifies."""
        return self.stepper is not None and self.stepper.sensitive

    @property
    def whole_timesteps(self) -> bool:
        """Whether no timestep lies between two noise levels."""
        return all(isinstance(step.timestep, int) for step in self.steps)

    @property
    def timesteps(self) -> torch.Tensor:
        """All timesteps, (S,) on the host: int64, or float32 where one lies between two noise levels."""
        dtype = torch.int64 if self.whole_timesteps else torch.float32
        return torch.tensor([step.timestep for step in self.steps], dtype=dtype)


def open_schedule(
    model: Path,
    steps: int,
    strength: float,
    *,
    scheduler: Scheduler = "model",
    interval: tuple[float, float] = WHOLE_SCHEDULE,
) -> Schedule:
    """Return the schedule of a checked model directory, from noise level `strength` down.

    Args:
        scheduler: "model" and "pndm" are cut to `strength` as diffusers' image-to-image pipeline cuts them, "dpmpp"
            and "unipc" as in `scheduler.even_steps`. All take the noise levels and the prediction type from the model.
        interval: the steps with low <= timestep / training timesteps <= high are guided, the others are not
            (Kynkaanniemi et al., 2024).

    Raises:
        ModelError: diffusers has no such scheduler, or its image-to-image pipeline cannot run it.
        PreflightError: the scheduler needs a package that is not installed.
        UsageError: no step lies in the interval.
    """
    sampler = open_scheduler(model, scheduler, strength)
    where = f"{model / 'scheduler'}: {type(sampler).__name__}"
    if scheduler in ("dpmpp", "unipc"):
        # These were opened over the first `strength` of the noise levels only, so all of their steps are run.
        schedule = tabulate(sampler, max(int(steps * strength), 1), 1.0, where=where)
    else:
        schedule = tabulate(sampler, steps, strength, where=where)
    return schedule if interval == WHOLE_SCHEDULE else guided_in(schedule, interval, train_timesteps(model))


def guided_in(schedule: Schedule, interval: tuple[float, float], levels: int) -> Schedule:
    """Return the schedule with guidance only where timestep / `levels` lies in a closed interval.

    Raises:
        UsageError: no step does.
    """
    low, high = interval
    positions = [step.timestep / levels for step in schedule.steps]
    if not any(low <= position <= high for position in positions):
        raise UsageError(
            f"--guidance-interval {low:g}:{high:g}: no step lies in it"
            f" ({', '.join(f'{position:.3g}' for position in positions)}); use --guidance 1 for none"
        )
    steps = list[Step]()
    for step, position in zip(schedule.steps, positions, strict=True):
        steps.append(dataclasses.replace(step, guided=low <= position <= high))
    return dataclasses.replace(schedule, steps=tuple(steps))


def tabulate(scheduler: Any, steps: int, strength: float, *, where: str | None = None) -> Schedule:
    """Read the last `int(steps * strength)` steps off a diffusers scheduler, as a table if one equals it.

    PNDM keeps its quirk: cutting the schedule drops one half of its doubled warm-up step, so its second call
    overwrites the first and all later calls see a sample one step noisier than they are told (50 steps at strength
    0.7 are 36 calls, at t = 701, 681, ..., 1).

    Args:
        where: begins the line of a refusal; None for the scheduler's class.

    Raises:
        ModelError: diffusers' image-to-image pipeline cannot run the scheduler, or its numbers are not finite, or its
            noise is not fixed by generators.
        PreflightError: it needs a package that is not installed.
    """
    with refusing_scheduler(type(scheduler).__name__ if where is None else where):
        stepper = _set_timesteps(scheduler, steps, strength)
        signal, noise = _start_coefficients(stepper)
        table = _read_table(stepper)
        reason = difference(table, stepper, signal, noise)
        if reason is None:
            return Schedule(signal, noise, table)
        require_reproducible(stepper)
        steps_without_terms = tuple(Step(step.timestep) for step in table)
        stepper = dataclasses.replace(stepper, reason=reason, sensitive=reason != ADDS_NOISE)
        return Schedule(signal, noise, steps_without_terms, stepper)


def _set_timesteps(scheduler: Any, steps: int, strength: float) -> Stepper:
    """Set the timesteps as the pipeline's `retrieve_timesteps` and `get_timesteps` do."""
    scheduler.set_timesteps(steps, device="cpu")
    # A scheduler of order 2 has two timesteps for each step.
    start = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
    timesteps = scheduler.timesteps[start:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    if len(timesteps) == 0:
        raise ValueError(f"no timestep is left of {steps} steps at strength {strength:g}")
    return Stepper(scheduler, timesteps, "generator" in parameters(scheduler))


def _start_coefficients(stepper: Stepper) -> tuple[float, float]:
    """Return the coefficients of the prototype and of the noise in x_0, proven on random tensors."""
    first, add_noise = stepper.timesteps[:1], stepper.scheduler.add_noise
    signal = add_noise(torch.ones(1, 1), torch.zeros(1, 1), first).item()
    noise = add_noise(torch.zeros(1, 1), torch.ones(1, 1), first).item()
    generator = torch.Generator().manual_seed(0)
    clean, gaussian = torch.randn(2, 2, 4, 4, 4, generator=generator)
    noised = add_noise(clean, gaussian, first.repeat(2))
    if not is_finite(noised) or not near(signal * clean + noise * gaussian, noised):
        raise ValueError(f"its start at timestep {first.item():g} is not a sum of prototype and noise")
    return signal, noise


def _read_table(stepper: Stepper) -> tuple[Step, ...]:
    """Step with a fresh unit vector for each sample and each output; the results' entries are the coefficients."""
    n = len(stepper.timesteps)
    units = torch.eye(2 * n, dtype=torch.float64).view(2 * n, 1, 2 * n, 1, 1)  # each is a batch of one tiny image
    stepping = stepper.begin([torch.Generator()])
    table = []
    for i, timestep in enumerate(stepper.timesteps.tolist()):
        scale = float(stepping.scale(units[i], i).flatten()[i])
        row = stepping.step(units[n + i], i, units[i]).flatten()
        if timestep == int(timestep):
            timestep = int(timestep)  # see `Schedule.whole_timesteps`
        table.append(Step(timestep, _terms(row[:n]), _terms(row[n:]), input_scale=scale))
    return tuple(table)


def _terms(row: torch.Tensor) -> Terms:
    """Return index and value of a row's entries that are not zero."""
    return tuple((int(j), row[j].item()) for j in row.nonzero().flatten())
