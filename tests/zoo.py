"""Pieces of random-weight pipelines, so small that a step takes about a millisecond, and diffusers' own result."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline, UNet2DConditionModel

from d4m_fast.engine.libraries import quiet_libraries

TOKENS, WIDTH = 3, 4


def smallest_unet(**config: Any) -> UNet2DConditionModel:
    """A UNet of one level and a few channels, with weights that make it far from linear."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "sample_size": 4,
        "block_out_channels": (4,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 2,
    }
    return UNet2DConditionModel(**{**fields, **config}).eval().requires_grad_(False)


def pipeline_with(scheduler: Any, unet: Any) -> StableDiffusionImg2ImgPipeline:
    """diffusers' own pipeline, whose constructor corrects the scheduler it is given."""
    with quiet_libraries():
        pipeline = StableDiffusionImg2ImgPipeline(
            vae=None,
            text_encoder=None,
            tokenizer=None,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def by_diffusers(
    scheduler: Any,
    unet: Any,
    latents: torch.Tensor,
    states: torch.Tensor,
    seeds: list[int],
    *,
    steps: int,
    strength: float,
    guidance: float,
) -> torch.Tensor:
    """Clean latents (B, C, h, w) of diffusers' image-to-image pipeline, from `states` (2B, tokens, width)."""
    pipeline = pipeline_with(scheduler, unet)
    negative, positive = states.chunk(2)
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images: torch.Tensor = pipeline(
            image=latents,
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images
    return images
