"""Write a diffusers directory of Stable Diffusion 1.5's exact sizes with random weights, for builds and timings.

    python tools/random_sd15.py /tmp/sd15

Configs as published with stable-diffusion-v1-5/stable-diffusion-v1-5. The tokenizer has single letters only, padded to
the same 77 tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch


def unet() -> Any:
    """859.5 million parameters."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def vae() -> Any:
    """83.7 million parameters."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    channels = (128, 256, 512, 512)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )


def text_encoder() -> Any:
    """123.1 million parameters: CLIP ViT-L/14's."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
        )
    )


def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    names = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({name: i for i, name in enumerate(names)}, [], model_max_length=77)


def scheduler() -> Any:
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


def write(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    makers = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    for name, make in makers.items():
        part = make()
        part.save_pretrained(path / name)
        index[name] = ["transformers" if name in ("text_encoder", "tokenizer") else "diffusers", type(part).__name__]
    (path / "model_index.json").write_text(json.dumps(index, indent=1))
    return path


@click.command(help=__doc__)
@click.argument("path", type=click.Path(path_type=Path))
def main(path: Path) -> None:
    write(path)


if __name__ == "__main__":
    main()
