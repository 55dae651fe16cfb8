"""The presets on the bundled model, image by image, against diffusers' own image-to-image pipeline."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from oracle import reference

from d4m_fast.config.choices import PresetName, Scheduler
from d4m_fast.config.distill import NEGATIVE_PROMPT, DistillConfig
from d4m_fast.config.generation import PRESETS
from d4m_fast.engine import generate
from d4m_fast.engine.model import open_model
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.schedule import open_schedule
from d4m_fast.fingerprints import derive_seed
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.plan import Batches, make_plan
from d4m_fast.runs.records import Prototypes
from d4m_fast.sources.idx_sets import FASHION_MNIST
from d4m_fast.sources.records import ClassInfo

# Diffusers' own: it hands a tensor to NumPy the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
log = logging.getLogger(__name__)

CLASSES, IPC = 8, 4
SHUFFLED = [5, 0, 7, 2, 1, 6, 3, 4]
REFERENCE = DistillConfig(ipc=IPC, steps=50, strength=0.7, guidance=8.0)


@dataclass
class Case:
    """Random prototypes of a few classes, what diffusers makes of them, and our networks."""

    model: Path
    prototypes: list[Prototypes]
    networks: Networks
    want: np.ndarray

    def ours(self, batch: int, order: list[int], config: DistillConfig = REFERENCE) -> np.ndarray:
        """Decoded pixels of the classes in `order`, put back in class order, made with our batches."""
        stream = Stream(len(order), [self.prototypes[i] for i in order])
        plan = make_plan([self.prototypes[i].info.id for i in order], IPC, Batches(generate=batch), threads=2)
        schedule = open_schedule(
            self.model, config.steps, config.strength, scheduler=config.scheduler, interval=config.interval
        )
        watch = Stopwatch()
        with Workers(watch) as workers:
            made = generate.generate(
                stream,
                plan.groups,
                self.networks,
                schedule,
                config,
                image_size=32,
                workers=workers,
                watch=watch,
            )
            rows = {(s.info.id, s.index): s.pixels for s in made}
        return np.stack([rows[self.prototypes[c].info.id, i] for c in sorted(order) for i in range(IPC)])

    def wanted(self, order: list[int]) -> np.ndarray:
        """Diffusers' pixels of the images of some classes, in class order."""
        return self.want.reshape(CLASSES, IPC, *self.want.shape[1:])[sorted(order)].reshape(-1, *self.want.shape[1:])


def prototypes_of(class_id: int, scale: float) -> Prototypes:
    """Smooth random latents of the size k-means gives."""
    generator = torch.Generator().manual_seed(class_id)
    coarse = torch.randn(IPC, 4, 2, 2, generator=generator)
    centroids = torch.nn.functional.interpolate(coarse, 8, mode="bicubic").numpy() * scale
    info = ClassInfo(class_id, str(class_id), FASHION_MNIST[class_id])
    return Prototypes(info, centroids, np.ones(IPC, np.int64), np.ones(IPC), ("",) * IPC)


def by_diffusers(model: Path, prototypes: list[Prototypes], **options: Any) -> np.ndarray:
    latents = torch.from_numpy(np.concatenate([p.centroids for p in prototypes]))
    prompts = [p.info.prompt for p in prototypes for _ in range(IPC)]
    seeds = [derive_seed(0, p.info.id, i, "generate") for p in prototypes for i in range(IPC)]
    return reference(model, latents, prompts, seeds, negative=NEGATIVE_PROMPT, **options)


@pytest.fixture(scope="module")
def case() -> Case:
    model = open_model("bundled").path
    prototypes = [prototypes_of(i, 0.7) for i in range(CLASSES)]
    networks = open_networks(model, torch.device("cpu"), torch.float32)
    return Case(model, prototypes, networks, by_diffusers(model, prototypes, steps=50))


@pytest.fixture
def before_quantisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoded pixels through as they are."""
    monkeypatch.setattr(generate, "to_bytes", lambda pixels: pixels.permute(0, 2, 3, 1))


@pytest.mark.usefixtures("before_quantisation")
def test_equal_batches_equal_diffusers(case: Case) -> None:
    furthest = np.abs(case.ours(CLASSES * IPC, list(range(CLASSES))) - case.want).max()
    log.info("batch %d: at most %.2g apart", CLASSES * IPC, furthest)
    # Convolutions add up in an order that the processor decides: within 1e-5 with AVX-512, 1.4e-5 with AVX2.
    assert furthest <= 5e-5
    assert case.want.std() > 0.1


@pytest.mark.usefixtures("before_quantisation")
@pytest.mark.parametrize(
    ("batch", "order"),
    [
        (1, [5, 2]),
        (7, SHUFFLED),
        *(
            pytest.param(batch, order, marks=pytest.mark.slow)
            for batch in (1, 7, 32)
            for order in (list(range(CLASSES)), SHUFFLED)
            if (batch, order) != (7, SHUFFLED)
        ),
    ],
)
def test_any_batch_and_order_stays_within_one_grey_level(case: Case, batch: int, order: list[int]) -> None:
    furthest = np.abs(case.ours(batch, order) - case.wanted(order)).max()
    log.info("batch %d, classes %s: at most %.2g apart", batch, order, furthest)
    assert furthest <= 1 / 255


def test_quantised_pixels_are_diffusers_own(case: Case) -> None:
    ours = case.ours(CLASSES * IPC, list(range(CLASSES)))
    assert np.abs(ours.astype(int) - (case.want * 255).round().astype(int)).max() <= 1
    assert (ours == (case.want * 255).round().astype(np.uint8)).mean() > 0.999


def test_the_comparison_can_fail(case: Case) -> None:
    """The same images from another seed are far away."""
    moved = np.roll(case.want, 1, axis=0)
    assert np.abs(moved - case.want).max() > 0.1


SAMPLERS = {"dpmpp": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}

ROUNDING = 3e-5  # diffusers weighs samples in another order; a grey level is 4e-3


@pytest.mark.usefixtures("before_quantisation")
@pytest.mark.parametrize("scheduler", SAMPLERS)
@pytest.mark.parametrize("interval", ["0:1", "0.3:0.6"])
def test_other_samplers_equal_diffusers_pipeline_with_them(case: Case, scheduler: Scheduler, interval: str) -> None:
    """10 evenly spaced steps cut at strength 0.7, cut by the pipeline itself."""
    config = DistillConfig(ipc=IPC, scheduler=scheduler, steps=10, guidance_interval=interval)
    sampler = partial(SAMPLERS[scheduler].from_config, timestep_spacing="trailing")
    want = by_diffusers(case.model, case.prototypes, steps=10, scheduler=sampler, interval=config.interval)
    furthest = np.abs(case.ours(CLASSES * IPC, list(range(CLASSES)), config) - want).max()
    log.info("%s, guided in %s: at most %.2g apart", scheduler, interval, furthest)
    assert furthest <= ROUNDING


@pytest.mark.usefixtures("before_quantisation")
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "reference"])
def test_presets_equal_diffusers_pipeline(case: Case, name: PresetName) -> None:
    """Over the noise levels up to the strength, where diffusers has to be given them."""
    config = DistillConfig.of_preset(name, ipc=IPC)
    even = config.scheduler in SAMPLERS
    cut: dict[str, Any] = {"steps": int(config.steps * config.strength), "strength": 1.0} if even else {}
    sampler = partial(shortened, SAMPLERS[config.scheduler], 700) if even else None
    want = by_diffusers(case.model, case.prototypes, scheduler=sampler, interval=config.interval, **cut)
    furthest = np.abs(case.ours(CLASSES * IPC, list(range(CLASSES)), config) - want).max()
    log.info("preset %s: at most %.2g apart", name, furthest)
    assert furthest <= ROUNDING


def shortened(sampler: Any, levels: int, config: Any) -> Any:
    betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, 1000)[:levels] ** 2
    return sampler.from_config(
        config, trained_betas=betas.tolist(), num_train_timesteps=levels, timestep_spacing="trailing"
    )


@pytest.mark.usefixtures("before_quantisation")
def test_a_wrong_interval_is_far_away(case: Case) -> None:
    """Steps at 0.699, 0.599, ...: other bounds around the same steps change nothing, one step more is seen."""

    def made(interval: str) -> np.ndarray:
        config = DistillConfig(ipc=IPC, scheduler="dpmpp", steps=10, guidance_interval=interval)
        return case.ours(CLASSES * IPC, list(range(CLASSES)), config)

    asked = made("0.3:0.6")
    assert np.abs(made("0.39:0.65") - asked).max() == 0
    assert np.abs(made("0.29:0.6") - asked).max() > 0.01
