"""Noise schedules as tables of coefficients, read off diffusers' own scheduler objects and checked against them.

Most samplers are linear: each new sample is a fixed combination of earlier samples and of earlier noise predictions.
Feeding a scheduler unit vectors instead of tensors reveals its coefficients, quirks included, and the denoising loop
becomes arithmetic that never leaves the device. Beside the finished table the real scheduler takes every step on random
tensors; where the two differ (it clips, thresholds or adds noise) the scheduler itself is stepped.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from d4m_fast.config import Scheduler
from d4m_fast.engine.scheduler import is_finite, open_scheduler, refusing_scheduler, scheduler_class, train_timesteps
from d4m_fast.errors import UsageError

Terms = tuple[tuple[int, float], ...]
Tensors = Sequence[torch.Tensor] | Mapping[int, torch.Tensor]
WHOLE = (0.0, 1.0)
STEP_TOLERANCE = 1e-6
"""Of the largest number in a step's result, float32: what another order of a sum's terms may change."""
ADDS_NOISE = "it adds noise of its own"
GAINS = (1.0, 3.0, -3.0)
"""Steepness of the stand-ins for the UNet: guidance makes it steep in either direction."""
RUN_TOLERANCE = 2e-6
"""Of the largest number in a run's result: rounding of up to 50 steps, of more by the square root of their number.
Stable Diffusion 1.5's PNDM has 6e-7, sigmas of 80 have up to 2e-5."""
SCALES = (1.0, 1e6)
"""Of the random tensors: of a latent's size, and so large that whatever clips, clips."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the UNet and the update after it.

    With x_0 the noised start, x_i the sample before step i and e_i the noise predicted in step i, the UNet sees
    `input_scale` * x_i, and this step's result is the sum of c * x_j over `samples` plus the sum of c * e_j over
    `outputs`. A step that is not `guided` needs the conditional noise only. Of a scheduler that is stepped itself only
    `timestep` and `guided` count.
    """

    timestep: float
    samples: Terms = ()
    outputs: Terms = ()
    guided: bool = True
    input_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Stepper:
    """A diffusers scheduler that no table equals, called as its pipeline calls it.

    Attributes:
        scheduler: after `set_timesteps` and `set_begin_index`; never stepped itself, each batch steps a copy.
        timesteps: those of the run, as the scheduler has them.
        draws_noise: whether its step takes generators.
        reason: why no table does it, in a few words.
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
        return Stepping(copy.deepcopy(self.scheduler), self.timesteps, self._options(generators))

    def _options(self, generators: list[torch.Generator] | None) -> dict[str, Any]:
        """What the pipeline's `prepare_extra_step_kwargs` gives: eta is its default, 0, whatever the scheduler's is."""
        options: dict[str, Any] = {"eta": 0.0} if "eta" in _parameters(self.scheduler) else {}
        return {**options, "generator": generators} if self.draws_noise else options


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


@dataclass(frozen=True, slots=True)
class Schedule:
    """How an image-to-image run starts and goes on; the start is `signal` * x + `noise` * N(0, I).

    Attributes:
        stepper: the scheduler to step where the table does not equal it.
    """

    signal: float
    noise: float
    steps: tuple[Step, ...]
    stepper: Stepper | None = None

    def guided_calls(self, guidance: float) -> int:
        """Steps that run the UNet on two samples per image; all others run it on one."""
        return sum(step.guided for step in self.steps) * (guidance > 1)

    def last_use(self) -> tuple[dict[int, int], dict[int, int]]:
        """The step after which sample x_j, and output e_j, is never read again: two maps from j."""
        samples = {j: i for i, step in enumerate(self.steps) for j, _ in step.samples}
        outputs = {j: i for i, step in enumerate(self.steps) for j, _ in step.outputs}
        return samples, outputs

    @property
    def sensitive(self) -> bool:
        """Whether only diffusers' own forward passes give diffusers' images: the scheduler clips or amplifies."""
        return self.stepper is not None and self.stepper.sensitive

    @property
    def whole_timesteps(self) -> bool:
        """Whether none lies between two noise levels."""
        return all(isinstance(step.timestep, int) for step in self.steps)

    @property
    def timesteps(self) -> torch.Tensor:
        """(S,) on the host: int64, or float32 where one lies between two noise levels."""
        dtype = torch.int64 if self.whole_timesteps else torch.float32
        return torch.tensor([step.timestep for step in self.steps], dtype=dtype)


def open_schedule(
    model: Path,
    steps: int,
    strength: float,
    *,
    scheduler: Scheduler = "model",
    interval: tuple[float, float] = WHOLE,
) -> Schedule:
    """Return the schedule of a checked model directory, from noise level `strength` down.

    Args:
        scheduler: "model" and "pndm" are cut to `strength` as diffusers' image-to-image pipeline cuts them; "dpmpp"
            and "unipc" see `scheduler.even_steps`. All take the noise levels and the prediction type from the model.
        interval: the steps with low <= timestep / training timesteps <= high are guided, the others are not
            (Kynkaanniemi et al., 2024).

    Raises:
        ModelError: diffusers has no such scheduler, or its image-to-image pipeline cannot run it.
        PreflightError: the scheduler needs a package that is not installed.
        UsageError: no step lies in the interval.
    """
    opened = open_scheduler(model, scheduler, strength)
    where = f"{model / 'scheduler'}: {scheduler_class(model) if scheduler == 'model' else type(opened).__name__}"
    if scheduler in ("dpmpp", "unipc"):
        schedule = tabulate(opened, max(int(steps * strength), 1), 1.0, where=where)
    else:
        schedule = tabulate(opened, steps, strength, where=where)
    return guided_in(schedule, interval, train_timesteps(open_scheduler(model, "model", strength)))


def guided_in(schedule: Schedule, interval: tuple[float, float], levels: int) -> Schedule:
    """Return the schedule with guidance only where the timestep lies in a closed interval of parts of all `levels`.

    Raises:
        UsageError: no step does.
    """
    if interval == WHOLE:  # also of schedules whose timesteps are no noise levels: EDM's are logarithms of sigmas
        return schedule
    low, high = interval
    steps = [dataclasses.replace(s, guided=low <= s.timestep / levels <= high) for s in schedule.steps]
    if not any(step.guided for step in steps):
        parts = ", ".join(f"{step.timestep / levels:.3g}" for step in steps)
        raise UsageError(
            f"--guidance-interval {low:g}:{high:g}: no step lies in it ({parts}); use --guidance 1 for none"
        )
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
        stepper = _cut(scheduler, steps, strength)
        signal, noise = _start(stepper)
        table = Schedule(signal, noise, _probe(stepper))
        reason = _nonlinearity(table, stepper)
        if reason is None:
            reason = _rounding(table, stepper)
        if reason is None:
            return table
        _require_reproducible(stepper)
        timesteps = tuple(Step(step.timestep) for step in table.steps)
        stepper = dataclasses.replace(stepper, reason=reason, sensitive=reason != ADDS_NOISE)
        return Schedule(signal, noise, timesteps, stepper)


def _cut(scheduler: Any, steps: int, strength: float) -> Stepper:
    """Set the timesteps as the pipeline's `retrieve_timesteps` and `get_timesteps` do."""
    scheduler.set_timesteps(steps, device="cpu")
    start = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
    timesteps = scheduler.timesteps[start:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    if len(timesteps) == 0:
        raise ValueError(f"no timestep is left of {steps} steps at strength {strength:g}")
    return Stepper(scheduler, timesteps, "generator" in _parameters(scheduler))


def _parameters(scheduler: Any) -> frozenset[str]:
    """Names of what a scheduler's step takes."""
    return frozenset(inspect.signature(scheduler.step).parameters)


def _start(stepper: Stepper) -> tuple[float, float]:
    """Coefficients of the prototype and of the noise in x_0, proven on random tensors."""
    first = stepper.timesteps[:1]
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    signal, noise = (stepper.scheduler.add_noise(a, b, first).item() for a, b in ((one, zero), (zero, one)))
    generator = torch.Generator().manual_seed(0)
    clean, drawn = torch.randn(2, 2, 4, 4, 4, generator=generator)
    started = stepper.scheduler.add_noise(clean, drawn, first.repeat(2))
    if not is_finite(started) or not _near(signal * clean + noise * drawn, started):
        raise ValueError(f"its start at timestep {first.item():g} is not a sum of prototype and noise")
    return signal, noise


def _probe(stepper: Stepper) -> tuple[Step, ...]:
    """Step with a fresh unit vector for each sample and each output; read the result's entries."""
    n = len(stepper.timesteps)
    units = torch.eye(2 * n, dtype=torch.float64).view(2 * n, 1, 2 * n, 1, 1)  # each one a batch of one tiny image
    stepping = stepper.begin([torch.Generator()])
    table = []
    for i, t in enumerate(stepper.timesteps):
        scale = float(stepping.scale(units[i], i).flatten()[i])
        row = stepping.step(units[n + i], i, units[i]).flatten()
        table.append(Step(_number(t), _terms(row[:n]), _terms(row[n:]), input_scale=scale))
    return tuple(table)


def _number(timestep: torch.Tensor) -> float:
    """A timestep as an integer where it is one."""
    value: float = timestep.item()
    return int(value) if value == int(value) else value


def _terms(row: torch.Tensor) -> Terms:
    return tuple((int(j), row[j].item()) for j in row.nonzero().flatten())


def _nonlinearity(table: Schedule, stepper: Stepper) -> str | None:
    """Step the real scheduler beside the table, on random tensors; returns where they part, None if nowhere.

    Raises:
        ValueError: the scheduler's own result is not finite.
    """
    for scale in SCALES:
        generator = torch.Generator().manual_seed(1)
        stepping = stepper.begin([torch.Generator().manual_seed(i) for i in range(2)])
        samples = [scale * torch.randn(2, 4, 4, 4, generator=generator)]
        outputs: list[torch.Tensor] = []
        for i, step in enumerate(table.steps):
            outputs.append(scale * torch.randn(2, 4, 4, 4, generator=generator))
            scaled = stepping.scale(samples[i], i)
            samples.append(stepping.step(outputs[i], i, samples[i]))
            if not is_finite(scaled, samples[-1]):
                raise ValueError(f"its step at timestep {step.timestep:g} is not finite")
            if any(j > i for j, _ in (*step.samples, *step.outputs)):  # a probe saw what is not there yet: noise
                return ADDS_NOISE
            same_input = _near(step.input_scale * samples[i], scaled)
            if not same_input or not _near(combine(step, samples, outputs), samples[-1]):
                return f"its step at timestep {step.timestep:g} is no fixed sum of samples and predictions"
    return None


def _rounding(table: Schedule, stepper: Stepper) -> str | None:
    """Run table and scheduler with stand-ins for the UNet; returns why they end apart, None if they do not.

    Two kinds amplify what no stand-in shows but steep networks do: inversions, which go up the noise levels, and
    networks that predict the sample, whose small differences are divided by small noise levels.
    """
    first, last = table.steps[0].timestep, table.steps[-1].timestep
    steep = last > first or stepper.scheduler.config.get("prediction_type") == "sample"
    tolerance = RUN_TOLERANCE * max(1.0, len(table.steps) / 50) ** 0.5
    if steep or any(_run_difference(table, stepper, gain) > tolerance for gain in GAINS):
        return "it amplifies rounding"
    return None


def _run_difference(table: Schedule, stepper: Stepper, gain: float) -> float:
    """Largest difference between the ends of two runs from one start, in parts of the largest number or of 1."""

    def predict(scaled: torch.Tensor, step: Step) -> torch.Tensor:
        return torch.tanh(gain * scaled.roll(1, -1) * (1 + step.timestep / 1000))

    clean, drawn = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    samples, outputs = [table.signal * clean + table.noise * drawn], list[torch.Tensor]()
    stepping, sample = stepper.begin([torch.Generator()]), samples[0]
    for i, step in enumerate(table.steps):
        sample = stepping.step(predict(stepping.scale(sample, i), step), i, sample)
        outputs.append(predict(step.input_scale * samples[i], step))
        samples.append(combine(step, samples, outputs))
    return float((samples[-1] - sample).abs().max() / sample.abs().max().clamp(min=1))


def combine(step: Step, samples: Tensors, outputs: Tensors) -> torch.Tensor:
    """Return a step's result from the samples x_j and the outputs e_j that it reads."""
    terms = [(c, samples[j]) for j, c in step.samples] + [(c, outputs[j]) for j, c in step.outputs]
    total = torch.zeros_like(terms[0][1])
    for coefficient, tensor in terms:
        total = torch.add(total, tensor, alpha=coefficient)
    return total


def _near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= STEP_TOLERANCE * theirs.abs().max())


def _require_reproducible(stepper: Stepper) -> None:
    """Refuse a scheduler whose noise comes from elsewhere than the generators it is given.

    Raises:
        ValueError: two passes with equal generators differ.
    """
    passes = []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            stepping = stepper.begin([torch.Generator().manual_seed(5)])
            sample = torch.ones(1, 4, 4, 4)
            for i in range(len(stepper.timesteps)):
                sample = stepping.step(torch.full_like(sample, 0.5), i, sample)
        passes.append(sample)
    if not torch.equal(*passes):
        raise ValueError("it draws noise that no generator of an image fixes")
