"""The students by name: `evaluate` trains them, `plan` counts their operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Student:
    """A network to train on a distilled set.

    Attributes:
        build: makes it anew from the number of classes, the side of its images in pixels and its width in channels.
        is_trained: whether `evaluate` offers it; `plan` knows all.
    """

    build: Callable[[int, int, int], nn.Module]
    is_trained: bool


# The builders import PyTorch themselves: the command line reads the names before it needs any network.
def _convnet3(classes: int, image_size: int, width: int) -> nn.Module:
    from d4m_fast.evaluation.convnet import ConvNet

    return ConvNet(classes, width=width, image_size=image_size)


def _resnet18(classes: int, image_size: int, width: int) -> nn.Module:
    from torchvision.models import resnet18

    return cast("nn.Module", resnet18(num_classes=classes))


STUDENTS: Mapping[str, Student] = MappingProxyType(
    {
        # The field's at 224 pixels. No protocol of `evaluate` has images of that size yet.
        "resnet18": Student(_resnet18, is_trained=False),
        "convnet3": Student(_convnet3, is_trained=True),
    }
)
