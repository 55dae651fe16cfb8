"""Students by name: `evaluate` trains them, `teach` makes teachers of them, `plan` counts their operations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from d4m_fast.errors import UsageError, wants_of_machine
from d4m_fast.wording import did_you_mean, first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

TIMM = "timm/"
_CONVNET = re.compile(r"convnet-(?P<depth>[1-9][0-9]?)-(?P<width>[1-9][0-9]{0,3})(?P<norm>-bn)?")
# Heads beside the classifier make a network return a tuple in training. Without init_weights torchvision warns that the
# initialisation will change (https://github.com/scipy/scipy/issues/11299 is why it is slow).
_ONE_HEAD: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


# PyTorch, torchvision and timm are imported where a network is built: help and options do without them.
def build_student(name: str, *, classes: int, image_size: int, width: int) -> nn.Module:
    """Build a network of random weights that takes RGB pixels in [0, 1], (N, 3, S, S), and returns (N, classes).

    Up to 64 pixels the first layers are those of `stems.FAMILIES`.

    Args:
        name: "convnet3" (3 blocks), "convnet-D-W" (D blocks of W channels; "-bn" has batch normalisation instead of
            instance normalisation), a classifier of torchvision, or one of timm, with or without "timm/" before it.
        image_size: S, pixels.
        width: channels of "convnet3"; the other names say theirs.

    Raises:
        UsageError: nobody knows the name, or the network does not take images of this size.
    """
    try:
        network = _build(name, classes, image_size, width)
        _try(network, classes, image_size)
    except (AssertionError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        if wants_of_machine(error):
            raise
        raise UsageError(
            f"{name}: does not take images of {image_size} pixels a side ({first_line(error)}); choose another network"
            " or size"
        ) from error
    return network


def _build(name: str, classes: int, image_size: int, width: int) -> nn.Module:
    from d4m_fast.evaluation.convnet import ConvNet, Norm, Normalised

    match = _CONVNET.fullmatch(name)
    if match is not None:
        depth = int(match["depth"])
        norm: Norm = "batch" if match["norm"] else "instance"
        if image_size >> depth == 0:
            raise ValueError(f"{depth} halvings leave no pixel")
        return ConvNet(classes, width=int(match["width"]), depth=depth, norm=norm, image_size=image_size)
    if name == "convnet3":
        return ConvNet(classes, width=width, image_size=image_size)
    return Normalised(build_classifier(name, classes, image_size))


def build_classifier(name: str, classes: int, image_size: int) -> nn.Module:
    """Build a classifier of torchvision or timm as `build_student` does, but one that takes normalised pixels.

    Raises:
        UsageError: nobody knows the name.
        AssertionError, RuntimeError, TypeError, ValueError: the library's own refusal.
    """
    from torchvision import models

    if not name.startswith(TIMM) and name in models.list_models(module=models):
        return _torchvision(name, classes, image_size)
    import timm

    bare = name.removeprefix(TIMM)
    if not timm.is_model(bare.partition(".")[0]):
        names = [*models.list_models(module=models), *timm.list_models(), "convnet3", "convnet-3-128"]
        hint = did_you_mean(bare, names)
        raise UsageError(
            f"no network {name!r}: write convnet3, convnet-DEPTH-WIDTH, or a name of torchvision or timm{hint}"
        )
    return _timm(bare, classes, image_size)


def _torchvision(name: str, classes: int, image_size: int) -> nn.Module:
    from torchvision import models

    from d4m_fast.evaluation.stems import LARGEST_SMALL, family_of, patch_of, replace_layer, shrink_stem

    is_small, arguments = image_size <= LARGEST_SMALL, _ONE_HEAD.get(name, {})
    if not name.startswith("vit_"):
        network = cast("nn.Module", models.get_model(name, weights=None, num_classes=classes, **arguments))
        if is_small:
            shrink_stem(network, family_of(name))
        return network
    # torchvision's builders fix the patch: one of as many patches is built, and its patches are made smaller.
    from torch import nn

    native = int(name.rpartition("_")[2])
    patch = patch_of(image_size) if is_small else native
    side = image_size // patch * native if is_small else image_size
    vit: Any = models.get_model(name, weights=None, num_classes=classes, image_size=side)
    if is_small:
        replace_layer(vit, "conv_proj", nn.Conv2d(3, vit.hidden_dim, patch, patch))
        vit.patch_size, vit.image_size = patch, image_size
    return cast("nn.Module", vit)


def _timm(name: str, classes: int, image_size: int) -> nn.Module:
    import timm

    from d4m_fast.evaluation.stems import LARGEST_SMALL, family_of, shrink_stem

    family, arguments = family_of(name), dict[str, Any]()
    if image_size <= LARGEST_SMALL and family.arguments is not None:
        arguments = family.arguments(image_size)
    else:
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.fixed_input_size:
            arguments = {"img_size": image_size}
    network = timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
    if image_size <= LARGEST_SMALL and family.arguments is None:
        shrink_stem(network, family)
    return cast("nn.Module", network)


def _try(network: nn.Module, classes: int, image_size: int) -> None:
    """Show a network one image, which tells what no builder checks: whether layers are left without a pixel."""
    import torch

    was_training = network.training
    with torch.no_grad():
        logits: torch.Tensor = network.eval()(torch.zeros(1, 3, image_size, image_size))
    network.train(was_training)
    if logits.shape != (1, classes):
        raise ValueError(f"it returns {tuple(logits.shape)} for one image, not {(1, classes)}")
