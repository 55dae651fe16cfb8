"""ConvNet-3, the student of the dataset-distillation field, and how other networks normalise as it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

Norm = Literal["instance", "batch"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 average pooling, then one linear layer.

    The 128-wide, three-block, instance-norm form is the student of Gidaris & Komodakis (2018) that DC
    (Zhao et al., 2021) and its successors report. It takes RGB pixels in [0, 1], shape (N, 3, S, S), and
    normalises them itself, so every caller augments in pixel space.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        classes: int,
        *,
        width: int = 128,
        depth: int = 3,
        norm: Norm = "instance",
        image_size: int = 32,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        # Buffers, so that a saved teacher brings the statistics of its training images along.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.blocks = nn.ModuleList()
        for inputs in (3, *[width] * (depth - 1)):
            # A group per channel is instance normalisation with the affine parameters that the published student has.
            normalise = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(width, width)
            convolve = nn.Conv2d(inputs, width, 3, padding=1)
            self.blocks.append(nn.Sequential(convolve, normalise, nn.ReLU(), nn.AvgPool2d(2)))
        # Each pooling halves the side.
        self.head = nn.Linear(width * (image_size >> depth) ** 2, classes)

    def features(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the activations after each block, (N, width, S / 2, S / 2), (N, width, S / 4, S / 4), and so on."""
        x = (pixels - self.mean) / self.std
        activations = []
        for block in self.blocks:
            x = block(x)
            activations.append(x)
        return activations

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, classes)."""
        logits: torch.Tensor = self.head(self.features(pixels)[-1].flatten(1))
        return logits


class Normalised(nn.Module):
    """A classifier of normalised pixels that takes RGB pixels in [0, 1], (N, 3, S, S), as `ConvNet` does.

    Its weights are those of `network`; mean and standard deviation are constants beside them.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, classes)."""
        logits: torch.Tensor = self.network((pixels - self.mean) / self.std)
        return logits


def quicken(student: ConvNet) -> None:
    """Make the blocks save a copy (ReLU in place) and pool faster than PyTorch does on a CPU; outputs stay the same."""
    for block in student.blocks:
        layers = cast(nn.Sequential, block)
        # Safe in place: normalisation needs its input in the backward pass, not its output.
        layers[2] = nn.ReLU(inplace=True)
        layers[3] = HalvingPool()


class HalvingPool(nn.Module):
    """2x2 average pooling of (N, C, H, W), an odd last row or column dropped; faster than `AvgPool2d` on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        return cast(torch.Tensor, _Halve.apply(x[:, :, :height, :width]))


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        rows = x[:, :, 0::2] + x[:, :, 1::2]
        return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        wide = (grads[0] * 0.25).repeat_interleave(2, -1)
        n, channels, height, width = wide.shape
        tall = wide.unsqueeze(3).expand(n, channels, height, 2, width)
        return tall.reshape(n, channels, 2 * height, width)
