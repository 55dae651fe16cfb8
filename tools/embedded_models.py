"""The networks of the bundled model, as configured, and their training losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from d4m_fast.evaluation import augment
from d4m_fast.evaluation.convnet import ConvNet

NEGATIVE_PROMPT = "cartoon, anime, painting"
TOKENS = 64
WIDTH_TEXT = 64


def teacher(classes: int, mean: float, std: float) -> ConvNet:
    return ConvNet(classes, width=64, norm="batch", mean=(mean,) * 3, std=(std,) * 3)


def teacher_loss(model: ConvNet, images: torch.Tensor, labels: torch.Tensor, shift: int) -> torch.Tensor:
    generator = torch.default_generator
    offsets = torch.randint(0, 2 * shift + 1, (2, len(images), 1), generator=generator)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return F.cross_entropy(model(augment.flipped(augment.shifted(images, offsets, shift), mirrored)), labels)


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )


def vae_loss(model: AutoencoderKL, perceptual: ConvNet, images: torch.Tensor) -> torch.Tensor:
    """Reconstruction in pixels and in the teacher's features, and a light pull to the unit normal."""
    posterior = model.encode(images * 2 - 1).latent_dist
    output = (model.decode(posterior.sample()).sample + 1) / 2
    with torch.no_grad():
        wanted = perceptual.features(images)
    feature = sum(_relative(got, want) for got, want in zip(perceptual.features(output), wanted, strict=True))
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    total: torch.Tensor = F.l1_loss(output, images) + 2 * F.mse_loss(output, images) + 0.05 * feature + 3e-4 * kl
    return total


def _relative(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(got, want) / want.square().mean()


def tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer with no merges: every byte is a token, in word and at word end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]
    names = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({name: i for i, name in enumerate(names)}, [], model_max_length=TOKENS)


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=WIDTH_TEXT,
            intermediate_size=4 * WIDTH_TEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH_TEXT,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH_TEXT,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> PNDMScheduler:
    """The one Stable Diffusion 1.5 ships."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )


class Denoiser(nn.Module):
    """UNet and text encoder, trained together on the twelve prompts there are."""

    input_ids: torch.Tensor

    def __init__(self, prompts: list[str], tokens: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = unet()
        self.text_encoder = text_encoder(tokens)
        encoded = tokens([*prompts, "", NEGATIVE_PROMPT], padding="max_length", truncation=True, return_tensors="pt")
        self.register_buffer("input_ids", encoded.input_ids)

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        states = self.text_encoder(self.input_ids).last_hidden_state
        noise: torch.Tensor = self.unet(noisy, t, states[prompt]).sample
        return noise


def denoiser_loss(model: Denoiser, alphas: torch.Tensor, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Noise prediction, weighted by min(SNR, 5) / SNR (Hang et al., 2023), prompt dropped one time in ten."""
    n = len(latents)
    t = torch.randint(0, len(alphas), (n,))
    a = alphas[t].view(n, 1, 1, 1)
    noise = torch.randn_like(latents)
    dropped = torch.rand(n)
    unconditional = len(model.input_ids) - 2 + (dropped < 0.05).long()
    prompt = torch.where(dropped < 0.1, unconditional, labels)
    predicted = model(a.sqrt() * latents + (1 - a).sqrt() * noise, t, prompt)
    snr = (a / (1 - a)).view(n)
    error = (predicted - noise).square().mean((1, 2, 3))
    weighted: torch.Tensor = (error * snr.clamp(max=5) / snr).mean()
    return weighted
