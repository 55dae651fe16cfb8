"""Noise schedules as tables of coefficients, read off diffusers' own scheduler objects.

Every sampler used here is linear: each new sample is a fixed combination of earlier samples and of earlier noise
predictions. Feeding a scheduler unit vectors instead of tensors therefore reveals its coefficients, quirks included,
and the denoising loop becomes arithmetic that never leaves the device.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from d4m_fast.config import Scheduler
from d4m_fast.errors import ModelError, UsageError

Terms = tuple[tuple[int, float], ...]
_CLASSES: dict[Scheduler, str] = {
    "pndm": "PNDMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the UNet and the update after it.

    With x_0 the noised start, x_i the sample before step i and e_i the noise predicted in step i, this step's result
    is the sum of c * x_j over `samples` plus the sum of c * e_j over `outputs`. A step that is not `guided` needs
    the conditional noise only.
    """

    timestep: int
    samples: Terms
    outputs: Terms
    guided: bool = True


@dataclass(frozen=True, slots=True)
class Schedule:
    """How an image-to-image run starts and goes on; the start is `signal` * x + `noise` * N(0, I)."""

    signal: float
    noise: float
    steps: tuple[Step, ...]

    def guided_calls(self, guidance: float) -> int:
        """Steps that run the UNet on two samples per image; all others run it on one."""
        return sum(step.guided for step in self.steps) * (guidance > 1)

    def last_use(self) -> tuple[dict[int, int], dict[int, int]]:
        """The step after which sample x_j, and output e_j, is never read again: two maps from j."""
        samples = {j: i for i, step in enumerate(self.steps) for j, _ in step.samples}
        outputs = {j: i for i, step in enumerate(self.steps) for j, _ in step.outputs}
        return samples, outputs


def open_schedule(
    model: Path,
    steps: int,
    strength: float,
    *,
    scheduler: Scheduler = "model",
    interval: tuple[float, float] = (0.0, 1.0),
) -> Schedule:
    """The schedule of a model directory, from noise level `strength` down.

    Args:
        scheduler: "model" and "pndm" are cut to `strength` as diffusers' image-to-image pipeline cuts them; "dpmpp"
            and "unipc" see `even_steps`. All take the noise levels and the prediction type from the model's config.
        interval: the steps with low <= timestep / training timesteps <= high are guided, the others are not
            (Kynkaanniemi et al., 2024).

    Raises:
        ModelError: diffusers has no such scheduler, or it is none that this engine can run.
        UsageError: no step lies in the interval.
    """
    config: dict[str, Any] = json.loads((model / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    name = _CLASSES.get(scheduler, str(config.get("_class_name")))
    if scheduler in ("dpmpp", "unipc"):
        chosen = even_steps(_scheduler(name, config, model), strength)
        schedule = tabulate(chosen, max(int(steps * strength), 1), 1.0)
    else:
        schedule = tabulate(_scheduler(name, config, model), steps, strength)
    return guided_in(schedule, interval, int(config.get("num_train_timesteps", 1000)))


def _scheduler(name: str, config: dict[str, Any], model: Path) -> Any:
    import diffusers

    scheduler_class = getattr(diffusers, name, None)
    if scheduler_class is None:
        raise ModelError(f"{model}: scheduler {name} is not one of diffusers'")
    return scheduler_class.from_config(config)


def even_steps(scheduler: Any, strength: float) -> Any:
    """The same diffusers scheduler over the first `strength` of the noise levels only, evenly spaced from their end.

    Few steps would start at another level than asked for if the whole schedule were cut: 8 evenly spaced steps can
    start at 5/8 or 6/8 of it, not at 0.7. Where the cut falls on a step the two are equal.
    """
    betas = scheduler.betas[: max(round(len(scheduler.betas) * strength), 1)]
    return type(scheduler).from_config(
        scheduler.config,
        trained_betas=betas.tolist(),
        num_train_timesteps=len(betas),
        timestep_spacing="trailing",
    )


def guided_in(schedule: Schedule, interval: tuple[float, float], train_timesteps: int) -> Schedule:
    """The schedule with guidance only where the timestep lies in a closed interval of parts of the whole.

    Raises:
        UsageError: no step does.
    """
    low, high = interval
    steps = [dataclasses.replace(s, guided=low <= s.timestep / train_timesteps <= high) for s in schedule.steps]
    if not any(step.guided for step in steps):
        levels = ", ".join(f"{step.timestep / train_timesteps:.3g}" for step in steps)
        raise UsageError(
            f"--guidance-interval {low:g}:{high:g}: no step lies in it ({levels}); use --guidance 1 for none"
        )
    return dataclasses.replace(schedule, steps=tuple(steps))


def tabulate(scheduler: Any, steps: int, strength: float) -> Schedule:
    """Read the table of the last `int(steps * strength)` steps off a diffusers scheduler.

    PNDM keeps its quirk: cutting the schedule drops one half of its doubled warm-up step, so its second call
    overwrites the first and all later calls see a sample one step noisier than they are told (50 steps at strength
    0.7 are 36 calls, at t = 701, 681, ..., 1).

    Raises:
        ModelError: the scheduler adds noise of its own or scales the UNet's input, which a table cannot hold.
    """
    scheduler.set_timesteps(steps)
    start = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
    timesteps = [int(t) for t in scheduler.timesteps[start:]]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    first = torch.tensor([timesteps[0]])
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    signal, noise = (scheduler.add_noise(a, b, first).item() for a, b in ((one, zero), (zero, one)))
    return Schedule(signal, noise, tuple(_probe(scheduler, timesteps)))


def _probe(scheduler: Any, timesteps: Sequence[int]) -> list[Step]:
    """Call the scheduler with a fresh unit vector for each sample and each output; read the result's entries."""
    n = len(timesteps)
    units = torch.eye(2 * n, dtype=torch.float64).view(2 * n, 1, 2 * n, 1, 1)  # each one a batch of one tiny image
    table = []
    for i, t in enumerate(timesteps):
        sample, output = units[i], units[n + i]
        if not torch.equal(scheduler.scale_model_input(sample, t), sample):
            raise ModelError(f"{type(scheduler).__name__} scales the UNet's input; use PNDM, DDIM or DPM-Solver++")
        twin = copy.deepcopy(scheduler)
        result, again = (s.step(output, t, sample, return_dict=False)[0] for s in (scheduler, twin))
        if not torch.equal(result, again):
            raise ModelError(f"{type(scheduler).__name__} adds noise in every step; use PNDM, DDIM or DPM-Solver++")
        row = result.flatten()
        table.append(Step(t, _terms(row[:n]), _terms(row[n:])))
    return table


def _terms(row: torch.Tensor) -> Terms:
    return tuple((int(j), row[j].item()) for j in row.nonzero().flatten())
