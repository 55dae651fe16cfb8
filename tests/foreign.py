"""Random-weight pipelines of other families, as diffusers saves them: what a user may bring by mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from models import TOKENS, WIDTH_TEXT, write_model
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel


def edit(file: Path, **fields: Any) -> None:
    """Put fields into a JSON file; None stands for null."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def drop(file: Path, *names: str) -> None:
    """Take fields out of a JSON file."""
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in names}))


def write_xl(path: Path) -> Path:
    """Two text encoders, whose pooled states and sizes of the image are conditions of the UNet."""
    conditions = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + WIDTH_TEXT,
        "cross_attention_dim": 2 * WIDTH_TEXT,
    }
    write_model(path, unet=conditions, scheduler=EulerDiscreteScheduler(), pipeline="StableDiffusionXLPipeline")
    torch.manual_seed(1)
    second = CLIPTextConfig(
        hidden_size=WIDTH_TEXT,
        projection_dim=WIDTH_TEXT,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        vocab_size=190,
    )
    CLIPTextModelWithProjection(second).save_pretrained(path / "text_encoder_2")
    edit(path / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    return path


def write_pixart(path: Path) -> Path:
    """A transformer in the UNet's place, and T5 in the text encoder's."""
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=16,
        norm_num_groups=1,
    )
    return _write_transformer(path, transformer, "PixArtAlphaPipeline")


def write_sd3(path: Path) -> Path:
    """A transformer that predicts a flow, and a VAE of 16 channels with a shift."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=16,
    )
    return _write_transformer(path, transformer, "StableDiffusion3Pipeline")


def _write_transformer(path: Path, transformer: Any, pipeline: str) -> Path:
    vae = {"latent_channels": 16, "shift_factor": 0.06} if pipeline.startswith("StableDiffusion3") else {}
    write_model(path, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(), pipeline=pipeline)
    for file in (path / "unet").iterdir():
        file.unlink()
    (path / "unet").rmdir()
    transformer.save_pretrained(path / "transformer")
    text = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(text).save_pretrained(path / "text_encoder_2")
    drop(path / "model_index.json", "unet")
    edit(path / "model_index.json", transformer=["diffusers", type(transformer).__name__])
    return path
