"""First layers for small images: classifiers of 224 pixels halve the side five times, which leaves nothing of 28."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

LARGEST_SMALL = 64  # pixels of a side; above it a network is as its authors made it
LEAST_TOKENS = 7  # along a side of a small image, of 28 pixels in patches of 4
SWIN_PATCH = SWIN_WINDOW_PER_PATCH = 2

Change = Literal["3x3", "stride 1", "patch 2", "none"]


@dataclass(frozen=True, slots=True)
class Family:
    """Changes that small images ask for in the networks of one family.

    Attributes:
        names: matches the start of their names, in torchvision and in timm.
        convolution: the first one becomes 3x3 of stride 1, or keeps its kernel and gets stride 1, or becomes a patch
            of 2x2, or stays.
        keeps_pool: whether the first max pooling stays.
        arguments: for timm's builder, from the side in pixels.
    """

    names: str
    convolution: Change
    keeps_pool: bool = True
    arguments: Callable[[int], dict[str, Any]] | None = None


def patch_of(size: int) -> int:
    """Return the side of a ViT's patches: the largest divisor of the image's side that leaves 7 along it or more."""
    return max(side for side in range(1, size // LEAST_TOKENS + 1) if size % side == 0)


def _patches(size: int) -> dict[str, Any]:
    return {"img_size": size, "patch_size": patch_of(size)}


def _windows(size: int) -> dict[str, Any]:
    return {"img_size": size, "patch_size": SWIN_PATCH, "window_size": SWIN_PATCH * SWIN_WINDOW_PER_PATCH}


# The first row that matches a name counts. ResNet's form is that of He et al. (2016, section 4.2) for CIFAR-10.
FAMILIES = (
    Family(r"(wide_|se)?res(net|next)|densenet|googlenet|shufflenet", "3x3", keeps_pool=False),
    Family(r"alexnet|squeezenet", "3x3"),
    Family(r"vgg", "none", keeps_pool=False),  # five poolings leave nothing of 28 pixels
    Family(r"vit_|deit|beit|eva|flexivit|cait", "none", arguments=_patches),
    Family(r"swin", "patch 2", arguments=_windows),
    Family(r"convnext", "patch 2"),
    Family(r"(tf_|gc_)?(mobilenet|mnasnet|efficientnet)|fbnet|ghostnet|hardcorenas|lcnet|mixnet|regnet", "stride 1"),
    Family(r"inception|nfnet", "stride 1"),
    Family(r"", "none"),  # of all others nobody has published such a form
)


def family_of(name: str) -> Family:
    """Return the row of `FAMILIES` that a network belongs to."""
    return next(family for family in FAMILIES if re.match(family.names, name))


def shrink_stem(network: nn.Module, family: Family) -> None:
    """Give a network the first layers that its family has for small images, in place, anew where they change shape."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if family.convolution == "stride 1":
        first.stride = (1, 1)
    elif family.convolution != "none":
        kernel, stride, padding = (3, 1, 1) if family.convolution == "3x3" else (2, 2, 0)
        layer = nn.Conv2d(first.in_channels, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
        # As torchvision initialises the convolutions of its ResNets.
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        replace_layer(network, name, layer)
    pool = next((n for n, m in network.named_modules() if isinstance(m, nn.MaxPool2d)), None)
    if not family.keeps_pool and pool is not None:
        replace_layer(network, pool, nn.Identity())


def replace_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one that has a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
