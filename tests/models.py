"""Random-weight models of Stable Diffusion's shape, small enough for tests and memory measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 24
WIDTH_TEXT = 16
Config = Mapping[str, Any]


def write_model(
    path: Path,
    *,
    vae_channels: tuple[int, ...] = (8, 16),
    unet_channels: tuple[int, ...] = (16, 32),
    sample_size: int = 8,
    width_text: int = WIDTH_TEXT,
    layers: int = 1,
    seed: int = 0,
    vae: Config = MappingProxyType({}),
    unet: Config = MappingProxyType({}),
    text: Config = MappingProxyType({}),
    scheduler: Any = None,
    pipeline: str = "StableDiffusionPipeline",
) -> Path:
    """Save a diffusers directory; the VAE halves the image once per entry of `vae_channels` after the first.

    Two attention heads everywhere: each half of `width_text` and of the UNet's channels wide.

    Args:
        layers: of the text encoder, and of each block of the others.
        vae, unet, text: fields of the config in place of what is here.
        scheduler: None for Stable Diffusion 1.5's.
        pipeline: the class in the index.
    """
    torch.manual_seed(seed)
    tokens = _tokenizer()
    parts = {
        "vae": _vae(vae_channels, {"layers_per_block": layers, **vae}),
        "unet": _unet(unet_channels, sample_size, width_text, {"layers_per_block": layers, **unet}),
        "text_encoder": _text_encoder(tokens, width_text, {"num_hidden_layers": layers, **text}),
        "tokenizer": tokens,
        "scheduler": _scheduler() if scheduler is None else scheduler,
    }
    for name, part in parts.items():
        part.save_pretrained(path / name)
    library = {"text_encoder": "transformers", "tokenizer": "transformers"}
    index = {name: [library.get(name, "diffusers"), type(part).__name__] for name, part in parts.items()}
    extras = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **index, **extras}))
    return path


def _vae(channels: tuple[int, ...], config: Config) -> AutoencoderKL:
    fields: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
        "latent_channels": 4,
        "norm_num_groups": 8,
    }
    return AutoencoderKL(**{**fields, **config})


def _unet(channels: tuple[int, ...], sample_size: int, width_text: int, config: Config) -> UNet2DConditionModel:
    fields: dict[str, Any] = {
        "sample_size": sample_size,
        "down_block_types": ("CrossAttnDownBlock2D",) + ("DownBlock2D",) * (len(channels) - 1),
        "up_block_types": ("UpBlock2D",) * (len(channels) - 1) + ("CrossAttnUpBlock2D",),
        "block_out_channels": channels,
        "cross_attention_dim": width_text,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**fields, **config})


def _tokenizer() -> CLIPTokenizer:
    letters = [chr(c) for c in range(33, 127)]
    names = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({name: i for i, name in enumerate(names)}, [], model_max_length=TOKENS)


def _text_encoder(tokens: CLIPTokenizer, width: int, config: Config) -> CLIPTextModel:
    fields: dict[str, Any] = {
        "vocab_size": len(tokens),
        "hidden_size": width,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    return CLIPTextModel(CLIPTextConfig(**{**fields, **config}))


def _scheduler() -> PNDMScheduler:
    """Stable Diffusion 1.5's."""
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
