"""Batch augmentations in pixel space, one random draw per image, all from the generator passed in.

Results are contiguous (N, C, H, W), whatever the layout of the input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def shift(images: torch.Tensor, limit: int, generator: torch.Generator) -> torch.Tensor:
    """Translate each image of (N, C, H, W) by up to `limit` pixels along each axis, filling with zeros."""
    n, channels, height, width = images.shape
    dy, dx = torch.randint(0, 2 * limit + 1, (2, n, 1), generator=generator)
    # One gather for the batch: a crop per image would be a Python loop in every training step.
    padded = F.pad(images, (limit,) * 4)
    rows = (dy + torch.arange(height)) * padded.shape[-1]
    columns = dx + torch.arange(width)
    index = (rows.unsqueeze(2) + columns.unsqueeze(1)).view(n, 1, -1)
    return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(n, channels, height, width)


def flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image left to right with probability one half."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(-1), images).contiguous()


def cutmix(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Paste one random box of a shuffled copy into the batch (Yun et al., 2019), beta 1.

    The mixing ratio is not returned: with a teacher in the loop the label of a mixed image is the teacher's.
    """
    height, width = images.shape[-2:]
    # With beta 1 the area of the box is uniform, so its side is the root of a uniform number.
    side = (1 - torch.rand((), generator=generator)).sqrt()
    centre = torch.rand(2, generator=generator)
    top, bottom = _span(centre[0], side, height)
    left, right = _span(centre[1], side, width)
    mixed = images.clone(memory_format=torch.contiguous_format)
    partners = torch.randperm(len(images), generator=generator)
    mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][partners]
    return mixed


def _span(centre: torch.Tensor, side: torch.Tensor, length: int) -> tuple[int, int]:
    low, high = (centre - side / 2) * length, (centre + side / 2) * length
    return max(round(low.item()), 0), min(round(high.item()), length)
