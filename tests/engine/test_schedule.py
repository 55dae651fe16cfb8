"""Tabulated schedules against diffusers' schedulers stepping real tensors."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)

from d4m_fast.config.choices import Scheduler
from d4m_fast.engine.libraries import quiet_libraries
from d4m_fast.engine.schedule import Schedule, open_schedule, tabulate
from d4m_fast.engine.scheduler import even_steps
from d4m_fast.errors import ModelError, PreflightError, UsageError

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


def fake_unet(sample: torch.Tensor, t: float) -> torch.Tensor:
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


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (DDIMScheduler(**BETAS), "is no fixed sum"),  # clips: the pipeline corrects that, the class by itself does not
        (DDIMScheduler(**BETAS, clip_sample=False, thresholding=True), "is no fixed sum"),
        (DDIMScheduler(**BETAS, clip_sample=True, clip_sample_range=1000.0), "is no fixed sum"),
        (DDPMScheduler(**BETAS, clip_sample=False), "adds noise"),
        (DPMSolverMultistepInverseScheduler(**BETAS), "amplifies rounding"),
    ],
)
def test_what_no_table_holds_is_stepped(scheduler: Any, reason: str) -> None:
    stepper = tabulate(scheduler, 10, 0.7).stepper
    assert stepper is not None
    assert reason in stepper.reason


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (FlowMatchEulerDiscreteScheduler(), "add_noise"),
        (IPNDMScheduler(), "add_noise"),
        (UnCLIPScheduler(), "order"),
        (pndm(prediction_type="sample"), "prediction_type given as sample"),
        (DDIMScheduler(**BETAS, clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"), "finite"),
    ],
)
def test_what_diffusers_pipeline_cannot_run_is_refused(scheduler: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said) as refusal:
        tabulate(scheduler, 10, 1.0)
    assert "\n" not in str(refusal.value)


def of_scheduler(model: Path, folder: Path, **config: Any) -> Path:
    """The model with another scheduler's config, and its class in the pipeline's index."""
    copy = Path(shutil.copytree(model, folder / "model"))
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (copy / "model_index.json").write_text(json.dumps(index))
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps({**BETAS, **config}))
    return copy


CHANGED_LEVELS: dict[str, dict[str, Any]] = {
    "zero SNR": {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "karras": {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
    "exponential": {"_class_name": "DPMSolverMultistepScheduler", "use_exponential_sigmas": True},
    "beta": {"_class_name": "UniPCMultistepScheduler", "use_beta_sigmas": True},
    "flow": {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0},
    "lu": {"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True},
    "sde": {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
    "order 3": {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "final_sigmas_type": "sigma_min"},
    "thresholding": {"_class_name": "DDPMScheduler", "thresholding": True, "clip_sample": False},
    "trained betas": {"_class_name": "DDIMScheduler", "trained_betas": torch.linspace(1e-4, 0.02, 1000).tolist()},
    "cosine": {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"},
}


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("preset", EVEN)
@pytest.mark.parametrize("name", CHANGED_LEVELS)
def test_presets_take_the_noise_levels_of_any_scheduler_once(
    name: str, preset: Scheduler, strength: float, tiny_model: Path, tmp_path: Path
) -> None:
    """The start has the signal of the model's own level, and the steps are diffusers' over levels cut by hand."""
    config = CHANGED_LEVELS[name]
    schedule = open_schedule(of_scheduler(tiny_model, tmp_path, **config), 10, strength, scheduler=preset)
    own = DDPMScheduler.from_config({**BETAS, **config, "thresholding": False})
    level = own.alphas_cumprod[round(1000 * strength) - 1].item()
    assert schedule.signal == pytest.approx((level if level > 0 else 2**-24) ** 0.5, rel=1e-4)  # diffusers' own floor
    assert schedule.steps[0].timestep == round(1000 * strength) - 1
    levels = own.betas[: round(1000 * strength)]
    cut = EVEN[preset](
        trained_betas=levels.tolist(),
        num_train_timesteps=len(levels),
        timestep_spacing="trailing",
        prediction_type=config.get("prediction_type", "epsilon"),
        rescale_betas_zero_snr=bool(levels[-1] == 1),
    )
    start, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = by_diffusers(cut, start, noise, len(schedule.steps), 1.0)
    torch.testing.assert_close(by_table(schedule, start, noise), want, rtol=0, atol=1e-6 * want.abs().max().item())


@pytest.mark.parametrize("name", CHANGED_LEVELS)
def test_pndm_of_any_scheduler_is_what_a_user_of_diffusers_would_make(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    """`PNDMScheduler.from_config(pipeline.scheduler.config)`, corrections of the pipeline included."""
    model = of_scheduler(tiny_model, tmp_path, steps_offset=0, **CHANGED_LEVELS[name])
    with quiet_libraries():
        pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(model, safety_checker=None)
        theirs = PNDMScheduler.from_config(pipeline.scheduler.config)
    assert theirs.config.steps_offset == 1 or not hasattr(pipeline.scheduler.config, "steps_offset")
    start, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = by_diffusers(theirs, start, noise, 20, 0.7)
    got = by_table(open_schedule(model, 20, 0.7, scheduler="pndm"), start, noise)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * want.abs().max().item())


def test_zero_snr_starts_where_the_issue_says(tiny_model: Path, tmp_path: Path) -> None:
    model = of_scheduler(tiny_model, tmp_path, **CHANGED_LEVELS["zero SNR"])
    for preset in EVEN:
        assert open_schedule(model, 10, 0.7, scheduler=preset).signal == pytest.approx(0.236, abs=5e-4)


def test_a_scheduler_without_betas_has_no_levels_for_a_preset(tiny_model: Path, tmp_path: Path) -> None:
    model = of_scheduler(tiny_model, tmp_path, _class_name="EDMEulerScheduler")
    with pytest.raises(ModelError, match="EDMEulerScheduler has no betas"):
        open_schedule(model, 10, 0.7, scheduler="dpmpp")


def test_the_index_says_which_class_it_is(tiny_model: Path, tmp_path: Path) -> None:
    """As diffusers has it; what the scheduler's own config says is ignored."""
    model = of_scheduler(tiny_model, tmp_path, _class_name="DDIMScheduler", steps_offset=1)
    config = model / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "PNDMScheduler"}))
    with quiet_libraries():
        pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(model, safety_checker=None)
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert open_schedule(model, 10, 0.7) == tabulate(pipeline.scheduler, 10, 0.7)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler"),
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "unheard_of"}, "unheard_of"),
        ({"_class_name": "DDIMScheduler", "beta_start": "low"}, "DDIMScheduler"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}, "DDIMScheduler"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "random"}, "random"),
    ],
)
def test_an_unusable_config_is_one_line(config: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said) as refusal:
        open_schedule(of_scheduler(tiny_model, tmp_path, **config), 10, 0.7)
    assert "scheduler" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(importlib.util.find_spec("torchsde") is not None, reason="torchsde is installed")
def test_a_missing_package_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="pip install torchsde"):
        open_schedule(of_scheduler(tiny_model, tmp_path, _class_name="DPMSolverSDEScheduler"), 10, 0.7)


def test_timesteps_between_two_levels_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    schedule = open_schedule(of_scheduler(tiny_model, tmp_path, _class_name="EulerDiscreteScheduler"), 20, 0.7)
    assert schedule.timesteps.dtype == torch.float32
    assert schedule.timesteps[0].item() == pytest.approx(683.526, abs=1e-3)
    assert schedule.guided_calls(8.0) == len(schedule.steps)


def test_interval_of_timesteps_that_are_no_levels(tiny_model: Path, tmp_path: Path) -> None:
    """EDM's are logarithms, some below zero: all are guided unless an interval is asked for."""
    schedule = open_schedule(of_scheduler(tiny_model, tmp_path, _class_name="EDMEulerScheduler"), 20, 0.7)
    assert min(step.timestep for step in schedule.steps) < 0
    assert schedule.guided_calls(8.0) == len(schedule.steps)


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
    cut = even_steps(EVEN[name], PNDMScheduler(**BETAS), 0.7)
    want = by_diffusers(cut, start, noise, len(schedule.steps), 1.0)
    torch.testing.assert_close(by_table(schedule, start, noise), want, rtol=0, atol=1e-6 * want.abs().max().item())


def test_a_models_scheduler_and_pndm_are_cut_as_ever(tiny_model: Path) -> None:
    want = tabulate(pndm(), 50, 0.7)
    assert open_schedule(tiny_model, 50, 0.7) == open_schedule(tiny_model, 50, 0.7, scheduler="pndm") == want


def test_the_interval_is_closed_and_in_parts_of_the_noise_schedule(tiny_model: Path) -> None:
    """Steps at t = 699, 599, ..., 99."""

    def guided(low: float, high: float) -> list[float]:
        schedule = open_schedule(tiny_model, 10, 0.7, scheduler="dpmpp", interval=(low, high))
        assert schedule.guided_calls(8.0) == sum(s.guided for s in schedule.steps)
        assert schedule.guided_calls(1.0) == 0
        return [s.timestep for s in schedule.steps if s.guided]

    assert guided(0, 1) == [699, 599, 499, 399, 299, 199, 99]
    assert guided(0.299, 0.599) == [599, 499, 399, 299]
    assert guided(0.3, 0.598) == [499, 399]
    with pytest.raises(UsageError, match="no step lies in it"):
        guided(0.71, 1)
