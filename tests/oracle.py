"""Diffusers' own image-to-image pipeline, called as the issue of equality demands: the oracle of generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline


def reference(
    model: Path,
    latents: torch.Tensor,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int = 50,
    negative: str,
    strength: float = 0.7,
    scheduler: Callable[[Any], Any] | None = None,
    interval: tuple[float, float] | None = None,
) -> np.ndarray:
    """Decoded pixels (N, H, W, 3) in [0, 1], before quantisation.

    Args:
        scheduler: from the config of the model's own; None for that one.
        interval: parts of 1,000 timesteps, ends included; outside, the conditional noise stands for both halves.
    """
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler(pipeline.scheduler.config)
    if interval is not None:
        pipeline.unet.register_forward_hook(_conditional_outside(*interval))
    images: np.ndarray = pipeline(
        prompt=prompts,
        image=latents,
        strength=strength,
        guidance_scale=8,
        num_inference_steps=steps,
        negative_prompt=[negative] * len(prompts),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    return images


def _conditional_outside(low: float, high: float) -> Callable[..., tuple[torch.Tensor] | None]:
    def hook(_: object, inputs: tuple[Any, ...], output: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if low <= float(inputs[1]) / 1000 <= high:
            return None
        conditional = output[0].chunk(2)[1]
        return (torch.cat([conditional, conditional]),)

    return hook
