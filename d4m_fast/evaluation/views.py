"""The random numbers of a batch's augmentation: drawn here, applied by `augment.py`, kept by `label_store.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from d4m_fast.evaluation.augment import flipped, pasted, resized_crops, shifted, shuffled_halves
from d4m_fast.evaluation.protocols import Protocol

CROP_TRIES = 10  # torchvision's RandomResizedCrop: then the whole image, or as much of it as the ratio allows
CROP_RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class Views:
    """Ways in which N images are shown before they are mixed; a step that the protocol does not have is None.

    Attributes:
        swaps: (N, 2) bool, halves swapped sideways, and upside down.
        boxes: (N, 4) int64, the crop's top, left, height and width in pixels.
        offsets: (2, N, 1) int64, the shift, counted from the largest one upwards and leftwards.
        flips: (N,) bool.
    """

    swaps: torch.Tensor | None
    boxes: torch.Tensor | None
    offsets: torch.Tensor | None
    flips: torch.Tensor

    def to(self, device: torch.device) -> Views:
        """Return the same views on a device."""
        return Views(
            None if self.swaps is None else self.swaps.to(device),
            None if self.boxes is None else self.boxes.to(device),
            None if self.offsets is None else self.offsets.to(device),
            self.flips.to(device),
        )


@dataclass(frozen=True, slots=True)
class Mix:
    """CutMix of a batch: the image pasted into each, (N,) int64, and the box for all, top, bottom, left, right."""

    partners: torch.Tensor
    box: torch.Tensor

    def share(self, resolution: int) -> float:
        """Return the part of the area that the box covers."""
        top, bottom, left, right = self.box.tolist()
        return float(max(bottom - top, 0) * max(right - left, 0)) / resolution**2


def draw_views(protocol: Protocol, n: int, generator: torch.Generator) -> Views:
    """Draw how n images are shown; what the protocol does not have takes nothing from the generator."""
    swaps = None if protocol.patches == 1 else torch.rand(n, 2, generator=generator) < 0.5
    boxes = None if protocol.crop is None else draw_boxes(n, protocol.resolution, protocol.crop, generator)
    limit = protocol.shift
    offsets = torch.randint(0, 2 * limit + 1, (2, n, 1), generator=generator) if limit else None
    return Views(swaps, boxes, offsets, torch.rand(n, generator=generator) < protocol.flip)


def draw_boxes(n: int, side: int, scale: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """Draw boxes of square images as torchvision's RandomResizedCrop does: the first of ten tries that fits.

    Returns:
        (n, 4) int64: top, left, height, width.
    """
    area, shape, place = torch.rand(3, n, CROP_TRIES, generator=generator, dtype=torch.float64)
    low, high = map(math.log, CROP_RATIOS)
    # Uniform in the logarithm of the ratio, so that tall boxes are as frequent as wide ones.
    target = (scale[0] + (scale[1] - scale[0]) * area) * side**2
    ratio = torch.exp(low + (high - low) * shape)
    widths, heights = (target * ratio).sqrt().round(), (target / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= side) & (heights > 0) & (heights <= side)
    first = fits.int().argmax(1)
    rows = torch.arange(n)
    is_whole = ~fits.any(1)  # the ratio of a square is one that is allowed, so that the fallback is the image itself
    height = torch.where(is_whole, side, heights[rows, first]).long()
    width = torch.where(is_whole, side, widths[rows, first]).long()
    top = (place[:, 0] * (side - height + 1)).long()
    left = (place[:, 1] * (side - width + 1)).long()
    return torch.stack((top, left, height, width), dim=1)


def draw_mix(protocol: Protocol, n: int, generator: torch.Generator) -> Mix | None:
    """Draw CutMix of one batch (Yun et al., 2019), beta 1: one box, and a permutation; None where it is not mixed."""
    if protocol.cutmix < 1 and (protocol.cutmix == 0 or torch.rand((), generator=generator) >= protocol.cutmix):
        return None
    resolution = protocol.resolution
    # With beta 1 the area of the box is uniform, so its side is the root of a uniform number.
    side = (1 - torch.rand((), generator=generator)).sqrt()
    centre = torch.rand(2, generator=generator)
    box = torch.tensor([*_span(centre[0], side, resolution), *_span(centre[1], side, resolution)])
    return Mix(torch.randperm(n, generator=generator), box)


def _span(centre: torch.Tensor, side: torch.Tensor, length: int) -> tuple[int, int]:
    low, high = (centre - side / 2) * length, (centre + side / 2) * length
    return max(round(low.item()), 0), min(round(high.item()), length)


def render(images: torch.Tensor, views: Views, protocol: Protocol) -> torch.Tensor:
    """Show uint8 images (N, 3, S, S) as the views say: float32 in [0, 1]."""
    pixels = to_pixels(images)
    if views.swaps is not None:
        pixels = shuffled_halves(pixels, views.swaps)
    if views.offsets is None and views.boxes is not None:
        return resized_crops(
            pixels, views.boxes, protocol.resolution, antialias=protocol.antialias, mirrored=views.flips
        )
    if views.boxes is not None:
        pixels = resized_crops(pixels, views.boxes, protocol.resolution, antialias=protocol.antialias)
    if views.offsets is not None:
        pixels = shifted(pixels, views.offsets, protocol.shift)
    return flipped(pixels, views.flips)


def mixed(pixels: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Paste the box of each image's partner into it."""
    return pasted(pixels, pixels[mix.partners.to(pixels.device)], mix.box)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 to float32 in [0, 1]."""
    return images.float() / 255
