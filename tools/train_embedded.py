"""Train the bundled model and teacher on Fashion-MNIST, pack the bundled images, and measure all of it.

    python tools/train_embedded.py --data DIR --work build/embedded

One command; stop it when you like and run it again: it goes on from the last minute. Seeds are fixed.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import embedded_models as models
import embedded_pack as pack
import torch
from diffusers import AutoencoderKL
from torch import nn
from training import batch_indices, train

from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.fingerprints import derive_seed
from d4m_fast.sources import idx
from d4m_fast.sources.idx_sets import FASHION_MNIST as CLASSES

SEED = 0
CRITIC_STEPS, TEACHER_STEPS, VAE_STEPS, DENOISER_STEPS = 4_000, 5_600, 2_300, 2_600
TEACHER_SHIFTED = 4_200
BATCH_TEACHER, BATCH_VAE, BATCH_DENOISER = 128, 64, 128


class Split:
    """Images as (N, 28, 28) bytes and labels; `pixels` gives RGB in [0, 1], zero-padded to 32 x 32."""

    def __init__(self, folder: Path, name: str) -> None:
        found = idx.find(folder, name)
        if found is None:
            raise click.ClickException(f"no Fashion-MNIST {name} files in {folder}")
        self.images, self.labels = (torch.from_numpy(idx.read(path).copy()) for path in found)

    def pixels(self, index: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(self.images[index].float() / 255, (2, 2, 2, 2))
        return padded.unsqueeze(1).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def train_teacher(split: Split, work: Path, *, seed: int, steps: int, shifted: int) -> ConvNet:
    """`shifted`: steps whose images are moved by up to two pixels; the others see them where the test set has them."""
    torch.manual_seed(derive_seed(seed, "teacher", "init"))
    everything = nn.functional.pad(split.images.float() / 255, (2, 2, 2, 2))
    model = models.teacher(len(CLASSES), everything.mean().item(), everything.std().item())
    model = model.to(memory_format=torch.channels_last)

    def loss(step: int) -> torch.Tensor:
        index = batch_indices(len(split.labels), BATCH_TEACHER, step, seed, "teacher")
        shift = 2 if step < shifted else 0
        return models.teacher_loss(model, split.pixels(index), split.labels[index].long(), shift)

    return train(
        "teacher",
        model,
        loss,
        steps=steps,
        lr=4e-3,
        work=work,
        seed=seed,
        ema_decay=0.998,
        weight_decay=0.05,
        say=click.echo,
    )


def train_vae(split: Split, teacher: ConvNet, work: Path) -> AutoencoderKL:
    torch.manual_seed(derive_seed(SEED, "vae", "init"))
    model = models.vae().to(memory_format=torch.channels_last)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)

    def loss(step: int) -> torch.Tensor:
        index = batch_indices(len(split.labels), BATCH_VAE, step, SEED, "vae")
        return models.vae_loss(model, teacher, split.pixels(index))

    return train(
        "vae",
        model,
        loss,
        steps=VAE_STEPS,
        lr=2e-3,
        work=work,
        seed=SEED,
        ema_decay=0.995,
        weight_decay=1e-4,
        say=click.echo,
    )


@torch.inference_mode()
def encode(split: Split, vae: AutoencoderKL, work: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every training image's latent; cached."""
    cache = work / "latents.pt"
    if cache.exists():
        mean, std = torch.load(cache, weights_only=True)
        return mean, std
    posteriors = [
        vae.encode(split.pixels(i) * 2 - 1).latent_dist for i in torch.split(torch.arange(len(split.labels)), 200)
    ]
    mean, std = (torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "std"))
    torch.save((mean, std), cache)
    return mean, std


def train_denoiser(split: Split, mean: torch.Tensor, std: torch.Tensor, factor: float, work: Path) -> models.Denoiser:
    torch.manual_seed(derive_seed(SEED, "denoiser", "init"))
    model = models.Denoiser(list(CLASSES), models.tokenizer()).to(memory_format=torch.channels_last)
    alphas = models.scheduler().alphas_cumprod

    def loss(step: int) -> torch.Tensor:
        index = batch_indices(len(split.labels), BATCH_DENOISER, step, SEED, "denoiser")
        latents = factor * (mean[index] + std[index] * torch.randn_like(mean[index]))
        return models.denoiser_loss(model, alphas, latents, split.labels[index].long())

    return train(
        "denoiser", model, loss, steps=DENOISER_STEPS, lr=1e-3, work=work, seed=SEED, ema_decay=0.998, say=click.echo
    )


@click.command(help=__doc__)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    default="/usr/share/datasets/fashion-mnist",
    show_default=True,
    help="Directory of the Fashion-MNIST IDX files.",
)
@click.option("--work", type=click.Path(path_type=Path), default="build/embedded", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="d4m_fast/assets", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
def main(data: Path, work: Path, out: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    split, test = Split(data, "train"), Split(data, "test")
    critic = train_teacher(split, work, seed=0, steps=CRITIC_STEPS, shifted=CRITIC_STEPS)
    vae = train_vae(split, critic, work)
    mean, std = encode(split, vae, work)
    factor = 1 / (mean.square() + std.square()).mean().sub(mean.mean() ** 2).sqrt().item()
    denoiser = train_denoiser(split, mean, std, factor, work)
    teacher = train_teacher(split, work, seed=1, steps=TEACHER_STEPS, shifted=TEACHER_SHIFTED)
    pack.pack_images(split.images.numpy(), split.labels.numpy(), (test.images.numpy(), test.labels.numpy()), out)
    pack.pack_model(vae, denoiser, factor, out)
    pack.pack_teacher(teacher.half(), out)
    figures = pack.measure(out, test.pixels(torch.arange(len(test.labels))), test.labels.long(), out / "samples.png")
    pack.write_losses(work, out)
    pack.write_readme(figures, out)
    click.echo(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
