"""What ships with the package is whole, small, and as good as its page says."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from d4m_fast.evaluation.images import load_images
from d4m_fast.evaluation.teachers import open_teacher
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.records import by_class

ASSETS = Path(str(resources.files("d4m_fast") / "assets"))


def test_all_of_it_is_at_most_20_megabytes() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 20_000_000


def test_bundled_images_are_balanced_and_complete() -> None:
    train, test = open_source("bundled"), open_source("bundled", split="test")
    assert {len(items) for items in by_class(train.items).values()} == {500}
    assert {len(items) for items in by_class(test.items).values()} == {1000}
    pixels = np.asarray(train.read(train.items[0]))
    assert pixels.shape == (32, 32, 3)
    assert pixels[:2].max() == 0


def test_recorded_figures_reach_what_was_asked() -> None:
    figures = json.loads((ASSETS / "figures.json").read_text())
    assert figures["teacher_test_accuracy"] >= 92.5
    assert figures["reconstructions_recognised"] >= 90
    assert figures["samples_recognised"] >= 95
    page = (ASSETS / "README.md").read_text()
    assert all(str(figures[name]) in page for name in figures if not isinstance(figures[name], dict))


def test_teacher_is_as_good_as_recorded() -> None:
    source = open_source("bundled", split="test")
    teacher = open_teacher("bundled", source.classes)
    images = load_images(source, 32, source.items[:2000])
    with torch.inference_mode():
        right = teacher.label(images.images.float() / 255).argmax(1) == images.labels
    recorded = json.loads((ASSETS / "figures.json").read_text())["teacher_test_accuracy"]
    assert abs(100 * right.float().mean().item() - recorded) < 2


def test_diffusers_opens_the_model_as_it_is() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "model", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(["bag"], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
    assert made.images.shape == (1, 32, 32, 3)


def test_tokenizer_covers_every_byte_and_holds_the_negative_prompt() -> None:
    tokenizer = StableDiffusionPipeline.from_pretrained(ASSETS / "model", dtype=torch.float32).tokenizer
    every = "".join(chr(c) for c in range(32, 0x250)) + "靴"
    ids = tokenizer(every).input_ids[1:-1]
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer("cartoon, anime, painting").input_ids) <= tokenizer.model_max_length == 64
