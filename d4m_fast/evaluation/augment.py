"""Batch augmentations in pixel space, each from numbers drawn before, so that a view can be stored and shown again.

Results are contiguous (N, C, H, W) float32, whatever the layout of the input, on the input's device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def shifted(images: torch.Tensor, offsets: torch.Tensor, limit: int) -> torch.Tensor:
    """Translate each image of (N, C, H, W) by its offset, zeros moving in.

    Args:
        offsets: (2, N, 1) int64, 0 to twice the limit; at the limit an image stays where it is.
        limit: largest translation along each axis, in pixels.
    """
    n, channels, height, width = images.shape
    dy, dx = offsets
    # One gather for the batch: a crop per image would be a Python loop in every training step.
    padded = F.pad(images, (limit,) * 4)
    rows = (dy + torch.arange(height, device=images.device)) * padded.shape[-1]
    columns = dx + torch.arange(width, device=images.device)
    index = (rows.unsqueeze(2) + columns.unsqueeze(1)).view(n, 1, -1)
    return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(n, channels, height, width)


def flipped(images: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Mirror left to right the images for which (N,) bool says so."""
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images).contiguous()


def resized_crops(
    images: torch.Tensor, boxes: torch.Tensor, size: int, *, antialias: bool, mirrored: torch.Tensor | None = None
) -> torch.Tensor:
    """Cut a box out of each image and resize it bilinearly, as `torchvision.transforms.v2.functional.resized_crop`.

    Args:
        images: (N, C, H, W) float.
        boxes: (N, 4) int64, top, left, height, width in pixels.
        size: side of the result.
        antialias: filter boxes that shrink with a triangle as wide as the pixels of the result, as Pillow does.
        mirrored: (N,) bool, the crops to mirror left to right, which costs nothing here: bit for bit as `flipped`.
    """
    tops, lefts, heights, widths = boxes.to(images.dtype).unbind(1)
    if antialias and bool((boxes[:, 2:] > size).any()):
        rows = _filter_rows(tops, heights, images.shape[2], size)
        columns = _mirrored_rows(_filter_rows(lefts, widths, images.shape[3], size), mirrored)
        return torch.einsum("nyh,nchw,nxw->ncyx", rows, images, columns).contiguous()
    y = _grid(tops, heights, images.shape[2], size)
    x = _mirrored_rows(_grid(lefts, widths, images.shape[3], size), mirrored)
    grid = torch.stack((x.unsqueeze(1).expand(-1, size, -1), y.unsqueeze(2).expand(-1, -1, size)), dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False).contiguous()


def _mirrored_rows(x: torch.Tensor, mirrored: torch.Tensor | None) -> torch.Tensor:
    """Return (N, size, ...) with the second axis turned round where (N,) bool says so."""
    return x if mirrored is None else torch.where(mirrored.view(-1, *(1,) * (x.ndim - 1)), x.flip(1), x)


def _centres(starts: torch.Tensor, lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Return where the pixels of the results are in the images, (N, size), a pixel's centre being its index + 0.5."""
    steps = torch.arange(size, device=starts.device, dtype=starts.dtype) + 0.5
    return starts.unsqueeze(1) + steps * (lengths / size).unsqueeze(1)


def _grid(starts: torch.Tensor, lengths: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """Return the coordinates that `grid_sample` takes, -1 to 1 from edge to edge."""
    # A crop knows nothing of what is around it: beyond the centre of its last pixel that pixel goes on.
    low, high = starts.unsqueeze(1) + 0.5, (starts + lengths).unsqueeze(1) - 0.5
    centres = torch.minimum(torch.maximum(_centres(starts, lengths, size), low), high)
    return centres * (2 / side) - 1


def _filter_rows(starts: torch.Tensor, lengths: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """Return the weight of each pixel of a side in each pixel of the result, (N, size, side), rows summing to 1."""
    scale = (lengths / size).clamp(min=1).view(-1, 1, 1)
    pixels = torch.arange(side, device=starts.device, dtype=starts.dtype) + 0.5
    distances = (pixels - _centres(starts, lengths, size).unsqueeze(2)).abs() / scale
    inside = (pixels > starts.unsqueeze(1)) & (pixels < (starts + lengths).unsqueeze(1))
    weights = (1 - distances).clamp(min=0) * inside.unsqueeze(1)
    return weights / weights.sum(2, keepdim=True)


def shuffled_halves(images: torch.Tensor, swaps: torch.Tensor) -> torch.Tensor:
    """Swap the left and right halves, then the upper and lower halves, of the images for which (N, 2) bool says so.

    RDED's ShufflePatches(2) (Sun et al., 2024); an odd last row or column belongs to the second half.
    """
    height, width = images.shape[2] // 2, images.shape[3] // 2
    sideways = torch.cat((images[..., width:], images[..., :width]), dim=3)
    images = torch.where(swaps[:, 0].view(-1, 1, 1, 1), sideways, images)
    upside = torch.cat((images[:, :, height:], images[:, :, :height]), dim=2)
    return torch.where(swaps[:, 1].view(-1, 1, 1, 1), upside, images).contiguous()


def pasted(images: torch.Tensor, others: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Paste a box of each other image into each image (CutMix, Yun et al., 2019).

    Args:
        boxes: (N, 4) or, one for all, (4,) int64: top, bottom, left, right, the ends excluded.
    """
    if boxes.ndim == 1:
        top, bottom, left, right = boxes.tolist()
        mixed = images.clone(memory_format=torch.contiguous_format)
        mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        return mixed
    top, bottom, left, right = boxes.view(-1, 4, 1, 1).unbind(1)
    rows = torch.arange(images.shape[2], device=images.device).view(1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, -1)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return torch.where(inside.unsqueeze(1), others, images).contiguous()
