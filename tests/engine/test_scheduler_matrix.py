"""Every scheduler of diffusers, by its options: our loop equals diffusers' image-to-image pipeline, or is refused.

Each cell goes the whole way: a scheduler folder on the disk and a UNet of random weights, by diffusers' pipeline and by
ours. `pytest -m slow tests/engine/test_scheduler_matrix.py` runs all cells; the normal suite some of each class.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from exactness import record
from zoo import TOKENS, WIDTH, by_diffusers, smallest_unet

from d4m_fast.engine.denoise import denoise
from d4m_fast.engine.eager import EagerRuntime
from d4m_fast.engine.libraries import LIBRARY_ERRORS, one_line, quiet_libraries
from d4m_fast.engine.networks import Unet
from d4m_fast.engine.schedule import open_schedule
from d4m_fast.engine.unet import DiffusersUnet
from d4m_fast.errors import ModelError, PreflightError

SCHEDULERS = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
STEPS, STRENGTHS = (1, 4, 20, 50), (0.3, 0.7, 1.0)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Options that are no booleans: one value at a time beside the defaults.
CHOICES: dict[str, tuple[Any, ...]] = {
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "beta_schedule": ("linear", "squaredcos_cap_v2", "unheard_of"),
    "algorithm_type": ("dpmsolver", "sde-dpmsolver", "sde-dpmsolver++", "noise_prediction"),
    "solver_type": ("heun", "bh1"),
    "solver_order": (1, 3),
    "final_sigmas_type": ("sigma_min",),
    "variance_type": ("fixed_large", "fixed_small_log", "learned_range"),
    "interpolation_type": ("log_linear",),
    "sigma_schedule": ("exponential",),
    "steps_offset": (0, 1),
    "trained_betas": ([0.001] * 1000,),
}
# diffusers computes the times of all 1,000 levels when these are made, by a loop in Python: half a second a cell.
SLOW_TO_MAKE = ("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler")
EQUAL = 1e-5  # of the largest number in diffusers' latents, or of 1
GUIDANCE, SEEDS = 8.0, [3, 4]
CPU = torch.device("cpu")
# NumPy 2 about diffusers: schedulers hand it tensors the old way, in every step.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
UNET = smallest_unet(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
OURS = Unet(EagerRuntime(DiffusersUnet(UNET), "unet", CPU, torch.float32))
GENERATOR = torch.Generator().manual_seed(0)
LATENTS = torch.randn(2, 4, 4, 4, generator=GENERATOR)
STATES = torch.randn(4, TOKENS, WIDTH, generator=GENERATOR)
Options = dict[str, Any]


def defaults_of(name: str) -> Options:
    """Names and defaults of what a scheduler's constructor takes; nothing for one whose package is missing."""
    with quiet_libraries():
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self"}


def booleans_of(name: str) -> Iterator[Options]:
    """The defaults, and each boolean option turned over; two kinds of sigmas at once, too."""
    flags = {option: value for option, value in defaults_of(name).items() if isinstance(value, bool)}
    yield {}
    for option, value in flags.items():
        yield {option: not value}
    sigmas = [option for option in flags if option.startswith("use_") and option.endswith(("sigmas", "lambdas"))]
    if len(sigmas) > 1:
        yield dict.fromkeys(sigmas[:2], True)


def choices_of(name: str) -> Iterator[Options]:
    options = defaults_of(name)
    yield from ({option: value} for option, values in CHOICES.items() if option in options for value in values)


def predictions_of(name: str) -> tuple[Options, ...]:
    known = "prediction_type" in defaults_of(name)
    return tuple({"prediction_type": prediction} for prediction in PREDICTIONS) if known else ({},)


def cells(name: str, *, whole: bool) -> Iterator[tuple[Options, int, float]]:
    """Options, steps and strength; `int(steps * strength)` of 0 is refused by the config and no cell."""
    if not whole:
        some = (*predictions_of(name), *booleans_of(name), *choices_of(name))
        yield from ((options, 4, 0.7) for options in some[:: 3 if name in SLOW_TO_MAKE else 1])
        yield from (({}, 1, 1.0), ({}, 20, 0.3))
        return
    for prediction, options in itertools.product(predictions_of(name), booleans_of(name)):
        for steps, strength in itertools.product(STEPS, STRENGTHS):
            if int(steps * strength) > 0:
                yield {**prediction, **options}, steps, strength
    yield from ((options, steps, 0.7) for options in choices_of(name) for steps in (4, 20))


def write_scheduler(folder: Path, name: str, options: Options) -> Path:
    """What the schedule is read from: the pipeline's index and the scheduler's config."""
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", name]}))
    config = {"_class_name": name, **BETAS, **options}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def theirs(name: str, folder: Path, steps: int, strength: float) -> torch.Tensor | str:
    """diffusers' latents, or why it makes none."""
    try:
        with quiet_libraries():
            scheduler = getattr(diffusers, name).from_pretrained(folder / "scheduler")
        latents = by_diffusers(
            scheduler, UNET, LATENTS, STATES, SEEDS, steps=steps, strength=strength, guidance=GUIDANCE
        )
    except LIBRARY_ERRORS as error:
        return f"diffusers: {type(error).__name__}: {one_line(error)}"
    return latents if latents.isfinite().all() else "diffusers: NaN or infinity"


def ours(folder: Path, steps: int, strength: float) -> tuple[torch.Tensor, str] | str:
    """Our latents and how they were made, or the line of our refusal."""
    try:
        schedule = open_schedule(folder, steps, strength)
    except (ModelError, PreflightError) as error:
        return str(error)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    noise = torch.stack([torch.randn(LATENTS.shape[1:], generator=generator) for generator in generators])
    noised = noise.mul_(schedule.noise).add_(schedule.signal * LATENTS)
    latents = denoise(noised, STATES, OURS, schedule, GUIDANCE, generators=generators)
    return latents, "table" if schedule.stepper is None else "stepped"


def compare(name: str, folder: Path, options: Options, steps: int, strength: float) -> tuple[str, float]:
    """How a cell ends, and the distance between ours and diffusers'; fails where neither equal nor refused."""
    write_scheduler(folder, name, options)
    expected, found = theirs(name, folder, steps, strength), ours(folder, steps, strength)
    cell = f"{name} {options}, {steps} steps, strength {strength}"
    if isinstance(found, str):
        assert "\n" not in found, cell
        return ("refused, and diffusers fails" if isinstance(expected, str) else f"refused: {found}"), 0.0
    assert not isinstance(expected, str), f"{cell}: ours runs, but {expected}"
    latents, how = found
    distance = float((latents - expected).abs().max() / expected.abs().max().clamp(min=1))
    assert distance <= EQUAL, f"{cell}: {distance:.2g} from diffusers ({how})"
    return how, distance


def run(name: str, folder: Path, *, whole: bool) -> Counter[str]:
    """All cells of a class; records how many ended in which way, and the largest distance."""
    outcomes, furthest, refusals = Counter[str](), 0.0, set[str]()
    for options, steps, strength in cells(name, whole=whole):
        outcome, distance = compare(name, folder, options, steps, strength)
        furthest = max(furthest, distance)
        if outcome.startswith("refused: "):
            refusals.add(outcome.split(": ", 2)[2])
            outcome = "refused, though diffusers runs"
        outcomes[outcome] += 1
    if whole:
        record("schedulers", {name: {"outcomes": outcomes, "furthest": furthest, "refusals": sorted(refusals)}})
    return outcomes


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


@pytest.mark.parametrize("name", SCHEDULERS)
def test_some_cells(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, whole=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_all_cells(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, whole=True)


def test_there_is_something_to_compare(tmp_path: Path) -> None:
    """Most of diffusers' denoising schedulers run, by table and stepped, and those that cannot are refused."""
    assert len(SCHEDULERS) > 40
    assert set(run("DPMSolverMultistepScheduler", tmp_path, whole=False)) >= {"table", "stepped"}
    assert set(run("FlowMatchEulerDiscreteScheduler", tmp_path, whole=False)) == {"refused, and diffusers fails"}
