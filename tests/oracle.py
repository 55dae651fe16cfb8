"""Diffusers' own image-to-image pipeline, called as the issue of equality demands: the oracle of generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline


def reference(
    model: Path, latents: torch.Tensor, prompts: list[str], seeds: list[int], *, steps: int = 50, negative: str
) -> np.ndarray:
    """Decoded pixels (N, H, W, 3) in [0, 1], before quantisation."""
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images: np.ndarray = pipeline(
        prompt=prompts,
        image=latents,
        strength=0.7,
        guidance_scale=8,
        num_inference_steps=steps,
        negative_prompt=[negative] * len(prompts),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    return images
