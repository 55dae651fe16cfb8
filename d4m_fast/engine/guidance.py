"""Classifier-free guidance (Ho & Salimans, 2022): the prediction with the prompt, pushed away from that without."""

from __future__ import annotations

import torch


def guide(noise: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the guided noise (B, C, h, w) of a batch's two predictions.

    Args:
        noise: (2B, C, h, w), first the predictions with the negative prompts, then those with the classes' prompts.
        scale: `--guidance`; 1 is the prediction with the prompt.
    """
    unconditional, conditional = noise.chunk(2)
    return unconditional + scale * (conditional - unconditional)
