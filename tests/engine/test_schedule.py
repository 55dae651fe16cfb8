"""Tabulated schedules against diffusers' schedulers stepping real tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from d4m_fast.config import Scheduler
from d4m_fast.engine.schedule import Schedule, even_steps, open_schedule, tabulate
from d4m_fast.errors import ModelError, UsageError

# Diffusers' own: it hands a tensor to NumPy the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def pndm(**extra: Any) -> PNDMScheduler:
    return PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, **extra)


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "pndm": pndm,
    "pndm-v": lambda: pndm(prediction_type="v_prediction"),
    "ddim": lambda: DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False, set_alpha_to_one=False),
    "dpm++": lambda: DPMSolverMultistepScheduler(**BETAS, steps_offset=1),
    "unipc": lambda: UniPCMultistepScheduler(**BETAS, steps_offset=1),
    "unipc-v": lambda: UniPCMultistepScheduler(**BETAS, steps_offset=1, prediction_type="v_prediction"),
}
EVEN: dict[Scheduler, Callable[..., Any]] = {"dpmpp": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


def fake_unet(sample: torch.Tensor, t: int) -> torch.Tensor:
    """Anything nonlinear that depends on the sample and the time."""
    return torch.tanh(sample.roll(1, -1) * (1 + t / 1000))


def by_diffusers(scheduler: Any, start: torch.Tensor, noise: torch.Tensor, steps: int, strength: float) -> torch.Tensor:
    """The denoising part of diffusers' image-to-image pipeline."""
    scheduler.set_timesteps(steps)
    begin = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    x: torch.Tensor = scheduler.add_noise(start, noise, timesteps[:1])
    for t in timesteps:
        x = scheduler.step(fake_unet(x, int(t)), t, x).prev_sample
    return x


def by_table(schedule: Schedule, start: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    samples, outputs = [schedule.signal * start + schedule.noise * noise], []
    for step in schedule.steps:
        outputs.append(fake_unet(samples[-1], step.timestep))
        terms = [c * samples[j] for j, c in step.samples] + [c * outputs[j] for j, c in step.outputs]
        samples.append(torch.stack(terms).sum(0))
    return samples[-1]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("steps", "strength"), [(50, 0.7), (50, 1.0), (50, 0.02), (20, 0.7), (7, 0.3), (3, 0.99)])
def test_table_equals_scheduler(name: str, steps: int, strength: float) -> None:
    start, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = by_diffusers(SCHEDULERS[name](), start, noise, steps, strength)
    got = by_table(tabulate(SCHEDULERS[name](), steps, strength), start, noise)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * want.abs().max().item())


def test_official_settings_are_36_calls_with_pndms_quirk() -> None:
    """50 steps at strength 0.7: t = 701, 681, ..., 1, and the second call overwrites the first."""
    schedule = tabulate(pndm(), 50, 0.7)
    assert [step.timestep for step in schedule.steps] == list(range(701, 0, -20))
    assert len(schedule.steps) == 36
    assert [j for j, _ in schedule.steps[1].samples] == [0]
    assert [j for j, _ in schedule.steps[2].samples] == [2]


def test_last_use_covers_exactly_what_is_read() -> None:
    schedule = tabulate(pndm(), 50, 0.7)
    samples, outputs = schedule.last_use()
    assert samples[0] == 1
    assert outputs[0] == max(i for i, step in enumerate(schedule.steps) if 0 in dict(step.outputs))
    assert max(outputs.values()) == len(schedule.steps) - 1


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler(**BETAS), DDPMScheduler(**BETAS)])
def test_refuses_what_a_table_cannot_hold(scheduler: Any) -> None:
    with pytest.raises(ModelError, match="use PNDM"):
        tabulate(scheduler, 10, 0.7)


@pytest.mark.parametrize("name", EVEN)
@pytest.mark.parametrize(("steps", "strength"), [(10, 0.7), (20, 0.7), (4, 0.5), (5, 0.2), (9, 1.0)])
def test_even_steps_are_diffusers_trailing_ones_where_the_cut_falls_on_a_step(
    name: Scheduler, steps: int, strength: float, tiny_model: Path
) -> None:
    """The pipeline's own cut of the whole schedule, not ours of its noise levels."""
    start, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = by_diffusers(EVEN[name](**BETAS, timestep_spacing="trailing"), start, noise, steps, strength)
    got = by_table(open_schedule(tiny_model, steps, strength, scheduler=name), start, noise)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * want.abs().max().item())


@pytest.mark.parametrize("name", EVEN)
@pytest.mark.parametrize("steps", [2, 5, 6, 8, 12, 33])
def test_even_steps_start_at_the_strength(name: Scheduler, steps: int, tiny_model: Path) -> None:
    """t = 699 of 1000, and diffusers' scheduler over the shortened noise levels does the same, step by step."""
    schedule = open_schedule(tiny_model, steps, 0.7, scheduler=name)
    assert schedule.steps[0].timestep == 699
    assert len(schedule.steps) == int(steps * 0.7)
    level = PNDMScheduler(**BETAS).alphas_cumprod[699].item()
    assert (schedule.signal, schedule.noise) == pytest.approx((level**0.5, (1 - level) ** 0.5), abs=1e-6)
    start, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cut = even_steps(EVEN[name](**BETAS), 0.7)
    want = by_diffusers(cut, start, noise, len(schedule.steps), 1.0)
    torch.testing.assert_close(by_table(schedule, start, noise), want, rtol=0, atol=1e-6 * want.abs().max().item())


def test_a_models_scheduler_and_pndm_are_cut_as_ever(tiny_model: Path) -> None:
    want = tabulate(pndm(), 50, 0.7)
    assert open_schedule(tiny_model, 50, 0.7) == open_schedule(tiny_model, 50, 0.7, scheduler="pndm") == want


def test_the_interval_is_closed_and_in_parts_of_the_noise_schedule(tiny_model: Path) -> None:
    """Steps at t = 699, 599, ..., 99."""

    def guided(low: float, high: float) -> list[int]:
        schedule = open_schedule(tiny_model, 10, 0.7, scheduler="dpmpp", interval=(low, high))
        assert schedule.guided_calls(8.0) == sum(s.guided for s in schedule.steps)
        assert schedule.guided_calls(1.0) == 0
        return [s.timestep for s in schedule.steps if s.guided]

    assert guided(0, 1) == [699, 599, 499, 399, 299, 199, 99]
    assert guided(0.299, 0.599) == [599, 499, 399, 299]
    assert guided(0.3, 0.598) == [499, 399]
    with pytest.raises(UsageError, match="no step lies in it"):
        guided(0.71, 1)
