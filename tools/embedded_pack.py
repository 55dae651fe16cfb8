"""Write the trained networks and the bundled images as the package ships them, and measure what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import embedded_models as models
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch import nn

from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.teachers import load_teacher, save_teacher
from d4m_fast.fingerprints import derive_seed
from d4m_fast.sources.idx_sets import FASHION_MNIST

TRAIN_PER_CLASS = 500
SAMPLES_PER_CLASS, STEPS, GUIDANCE = 50, 25, 4.0


def pack_images(images: np.ndarray, labels: np.ndarray, test: tuple[np.ndarray, np.ndarray], out: Path) -> None:
    """The first images of each class, in file order, and the whole test set, losslessly, in one file."""
    ranks = np.empty(len(labels), np.int64)
    for c in np.unique(labels):
        ranks[labels == c] = np.arange((labels == c).sum())
    chosen = ranks < TRAIN_PER_CLASS
    arrays = {
        "train_images": images[chosen],
        "train_labels": labels[chosen],
        "test_images": test[0],
        "test_labels": test[1],
    }
    np.savez_compressed(out / "fashion-mnist.npz", **arrays)  # type: ignore[arg-type]


def pack_model(vae: AutoencoderKL, denoiser: models.Denoiser, factor: float, out: Path) -> None:
    """A Stable Diffusion directory in fp16."""
    vae.register_to_config(scaling_factor=factor)
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=denoiser.text_encoder.half(),
        tokenizer=models.tokenizer(),
        unet=denoiser.unet.half(),
        scheduler=models.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out / "model", safe_serialization=True)


def pack_teacher(teacher: ConvNet, out: Path) -> None:
    save_teacher(teacher, out / "teacher", list(FASHION_MNIST))


@torch.inference_mode()
def measure(out: Path, pixels: torch.Tensor, labels: torch.Tensor, sheet: Path) -> dict[str, Any]:
    """Figures of the shipped files: everything is read back from `out`.

    Args:
        pixels: the test images, RGB in [0, 1].
        sheet: where the contact sheet of text-to-image samples goes.
    """
    teacher = load_teacher(out / "teacher").network
    rebuilt = _reconstructions(out / "model", pixels)
    samples, prompted = _samples(out / "model")
    _contact_sheet(samples).save(sheet)
    recognised = _recognise(teacher, samples)
    return {
        "teacher_test_accuracy": _percent(_recognise(teacher, pixels) == labels),
        "reconstruction_psnr_db": round(-10 * (rebuilt - pixels).square().mean((1, 2, 3)).log10().mean().item(), 2),
        "reconstructions_recognised": _percent(_recognise(teacher, rebuilt) == labels),
        "samples_recognised": _percent(recognised == prompted),
        "samples_recognised_per_class": {
            name: _percent(recognised[prompted == c] == c) for c, name in enumerate(FASHION_MNIST)
        },
    }


def _percent(right: torch.Tensor) -> float:
    return round(100 * right.float().mean().item(), 2)


def _recognise(teacher: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([teacher(batch).argmax(1) for batch in torch.split(pixels, 500)])


def _reconstructions(model: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Encoded to a sample of the posterior, as D4M does, and decoded."""
    vae = AutoencoderKL.from_pretrained(model / "vae", dtype=torch.float32)
    generator = torch.Generator().manual_seed(derive_seed("reconstructions"))
    batches = [
        vae(batch * 2 - 1, sample_posterior=True, generator=generator).sample for batch in torch.split(pixels, 200)
    ]
    return (torch.cat(batches) / 2 + 0.5).clamp(0, 1)


def _samples(model: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Text-to-image by diffusers' own pipeline: pixels in [0, 1] and the classes prompted."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made = []
    for c, name in enumerate(FASHION_MNIST):
        generators = [torch.Generator().manual_seed(derive_seed("sample", c, i)) for i in range(SAMPLES_PER_CLASS)]
        made.append(
            pipeline(
                [name] * SAMPLES_PER_CLASS,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=generators,
                output_type="pt",
            ).images
        )
    return torch.cat(made), torch.arange(len(FASHION_MNIST)).repeat_interleave(SAMPLES_PER_CLASS)


def _contact_sheet(samples: torch.Tensor, columns: int = 10, zoom: int = 2) -> Image.Image:
    """The first samples of each class, one row a class."""
    rows = samples.view(len(FASHION_MNIST), SAMPLES_PER_CLASS, *samples.shape[1:])[:, :columns]
    grid = rows.permute(0, 3, 1, 4, 2).reshape(rows.shape[0] * rows.shape[3], columns * rows.shape[4], 3)
    image = Image.fromarray((grid * 255).round().to(torch.uint8).numpy())
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def write_losses(work: Path, out: Path) -> None:
    """Mean training losses by step, of every stage: "teacher-0" is the critic that the VAE's perceptual loss uses."""
    stages = {log.stem: [json.loads(line) for line in log.read_text().splitlines()] for log in work.glob("*.jsonl")}
    losses = {name: {row["step"]: row["loss"] for row in rows} for name, rows in sorted(stages.items())}
    (out / "losses.json").write_text(json.dumps(losses, indent=0) + "\n")


def write_readme(figures: dict[str, Any], out: Path) -> None:
    """The figures, and a page that states them."""
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    template = Path(__file__).with_name("embedded_readme.md").read_text()
    classes = "\n".join(f"| {name} | {share} |" for name, share in figures["samples_recognised_per_class"].items())
    (out / "README.md").write_text(template.format(**figures, classes=classes, per_class=TRAIN_PER_CLASS))
