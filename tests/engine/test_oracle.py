"""The reference preset on the bundled model, image by image, against diffusers' own image-to-image pipeline."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import reference

from d4m_fast.config import NEGATIVE_PROMPT, DistillConfig, derive_seed
from d4m_fast.data.arrays import FASHION_MNIST
from d4m_fast.data.plan import Batches, make_plan
from d4m_fast.data.records import ClassInfo, Prototypes
from d4m_fast.data.stream import Stream
from d4m_fast.data.timing import Stopwatch
from d4m_fast.data.workers import Workers
from d4m_fast.engine import generate
from d4m_fast.engine.model import open_model
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.schedule import open_schedule

log = logging.getLogger(__name__)

CLASSES, IPC = 8, 4
STEPS, STRENGTH, GUIDANCE = 50, 0.7, 8.0


@dataclass
class Case:
    """Random prototypes of a few classes, what diffusers makes of them, and our networks."""

    model: Path
    prototypes: list[Prototypes]
    networks: Networks
    want: np.ndarray

    def ours(self, batch: int, order: list[int]) -> np.ndarray:
        """Decoded pixels of all images, put back in class order, made in `order` with our batches."""
        stream = Stream(len(order), [self.prototypes[i] for i in order])
        plan = make_plan([self.prototypes[i].info.id for i in order], IPC, Batches(generate=batch), threads=2)
        schedule = open_schedule(self.model, STEPS, STRENGTH)
        watch = Stopwatch()
        with Workers(watch) as workers:
            made = generate.generate(
                stream,
                plan.groups,
                self.networks,
                schedule,
                DistillConfig(ipc=IPC, steps=STEPS, strength=STRENGTH, guidance=GUIDANCE),
                image_size=32,
                workers=workers,
                watch=watch,
            )
            rows = {(s.info.id, s.index): s.pixels for s in made}
        return np.stack([rows[p.info.id, i] for p in self.prototypes for i in range(IPC)])


def prototypes_of(class_id: int, scale: float) -> Prototypes:
    """Smooth random latents of the size k-means gives."""
    generator = torch.Generator().manual_seed(class_id)
    coarse = torch.randn(IPC, 4, 2, 2, generator=generator)
    centroids = torch.nn.functional.interpolate(coarse, 8, mode="bicubic").numpy() * scale
    info = ClassInfo(class_id, str(class_id), FASHION_MNIST[class_id])
    return Prototypes(info, centroids, np.ones(IPC, np.int64), np.ones(IPC), ("",) * IPC)


@pytest.fixture(scope="module")
def case() -> Case:
    model = open_model("bundled").path
    prototypes = [prototypes_of(i, 0.7) for i in range(CLASSES)]
    latents = torch.from_numpy(np.concatenate([p.centroids for p in prototypes]))
    prompts = [p.info.prompt for p in prototypes for _ in range(IPC)]
    seeds = [derive_seed(0, p.info.id, i, "generate") for p in prototypes for i in range(IPC)]
    want = reference(model, latents, prompts, seeds, steps=STEPS, negative=NEGATIVE_PROMPT)
    networks = open_networks(model, torch.device("cpu"), torch.float32)
    return Case(model, prototypes, networks, want)


@pytest.fixture
def before_quantisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoded pixels through as they are."""
    monkeypatch.setattr(generate, "_to_bytes", lambda pixels: pixels.permute(0, 2, 3, 1))


@pytest.mark.usefixtures("before_quantisation")
def test_equal_batches_equal_diffusers(case: Case) -> None:
    furthest = np.abs(case.ours(CLASSES * IPC, list(range(CLASSES))) - case.want).max()
    log.info("batch %d: at most %.2g apart", CLASSES * IPC, furthest)
    assert furthest <= 1e-5
    assert case.want.std() > 0.1


@pytest.mark.usefixtures("before_quantisation")
@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("order", [list(range(CLASSES)), [5, 0, 7, 2, 1, 6, 3, 4]], ids=["sorted", "shuffled"])
def test_any_batch_and_order_stays_within_one_grey_level(case: Case, batch: int, order: list[int]) -> None:
    furthest = np.abs(case.ours(batch, order) - case.want).max()
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
