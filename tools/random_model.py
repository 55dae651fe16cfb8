"""Write a diffusers directory with random weights, of Stable Diffusion 1.5's sizes or smaller, for builds and timings.

    python tools/random_model.py sd15 /tmp/sd15
    python tools/random_model.py medium /tmp/medium

`sd15` has the configs in d4m_fast/assets/sd15. `medium` has a UNet of 35 million parameters on 32x32 latents of 256
pixels. The tokenizer has single letters only.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import click
import torch

Size = Literal["sd15", "medium"]
CONFIGS = Path(str(resources.files("d4m_fast"))) / "assets" / "sd15"
CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
MEDIUM: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 32,
        "block_out_channels": [128, 256, 384],
        "layers_per_block": 1,
        "cross_attention_dim": 256,
        "down_block_types": [CROSS[0], CROSS[0], PLAIN[0]],
        "up_block_types": [PLAIN[1], CROSS[1], CROSS[1]],
    },
    "vae": {"block_out_channels": [32, 64, 64, 64], "layers_per_block": 1, "sample_size": 256},
    "text_encoder": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    "scheduler": {},
}


def config(part: str, size: Size) -> dict[str, Any]:
    (file,) = (CONFIGS / part).glob("*config.json")
    known: dict[str, Any] = json.loads(file.read_text())
    return known if size == "sd15" else known | MEDIUM[part]


def parts(size: Size) -> dict[str, Any]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    return {
        "unet": UNet2DConditionModel.from_config(config("unet", size)),
        "vae": AutoencoderKL.from_config(config("vae", size)),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**config("text_encoder", size))),
        "scheduler": PNDMScheduler.from_config(config("scheduler", size)),
        "tokenizer": tokenizer(),
    }


def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    names = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({name: i for i, name in enumerate(names)}, [], model_max_length=77)


def write(path: Path, size: Size) -> Path:
    torch.manual_seed(0)
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    for name, part in parts(size).items():
        part.save_pretrained(path / name)
        index[name] = ["transformers" if name in ("text_encoder", "tokenizer") else "diffusers", type(part).__name__]
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (path / "model_index.json").write_text(json.dumps(index, indent=1))
    return path


@click.command(help=__doc__)
@click.argument("size", type=click.Choice(["sd15", "medium"]))
@click.argument("path", type=click.Path(path_type=Path))
def main(size: Size, path: Path) -> None:
    write(path, size)


if __name__ == "__main__":
    main()
