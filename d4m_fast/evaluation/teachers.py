"""The teacher: its directory, the labels it gives, and the loss that matches them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from d4m_fast.errors import ModelError
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.storage import files
from d4m_fast.storage.state import read_json

BUNDLED = "bundled"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_teacher(model: ConvNet, folder: Path, classes: Sequence[str], *, image_size: int = 32) -> None:
    """Write `config.json` and `model.safetensors` (the model's own dtype) to `folder`, made if missing.

    Args:
        classes: names in the order of the class ids, one per output of the model.
        image_size: pixels along each side of the images the model takes.

    Raises:
        ModelError: the model does not have these classes, or takes images of another size.
    """
    if len(classes) != model.head.out_features or not takes(model, image_size):
        raise ModelError(f"not a teacher of {len(classes)} classes and images of {image_size} pixels a side")
    first = cast(nn.Sequential, model.blocks[0])
    config = {
        "classes": list(classes),
        "width": cast(nn.Conv2d, first[0]).out_channels,
        "depth": len(model.blocks),
        "norm": "batch" if isinstance(first[1], nn.BatchNorm2d) else "instance",
        "image_size": image_size,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    # Safetensors refuses tensors that are not contiguous, as those of a channels_last model.
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)


def takes(model: ConvNet, size: int) -> bool:
    """Whether the model's head fits images of `size` pixels a side."""
    width = cast(nn.Conv2d, cast(nn.Sequential, model.blocks[0])[0]).out_channels
    return model.head.in_features == width * (size >> len(model.blocks)) ** 2


def load_teacher(folder: Path) -> ConvNet:
    """Read a teacher of `save_teacher`, half precision widened: float32, in evaluation mode, without gradients.

    Raises:
        ModelError: a file is missing or cannot be read, or the weights do not fit the config.
    """
    model = _from_config(folder / CONFIG)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS}: the teacher's weights cannot be read ({_line(error)})") from error
    _check_fit(model, state, folder / WEIGHTS)
    # Counters of batch normalisation are integers, and stay so.
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model.eval().requires_grad_(False)


def open_teacher(name: str, classes: Sequence[str]) -> ConvNet:
    """Open the bundled teacher, or the one in a directory.

    Args:
        name: "bundled" or a directory of `save_teacher`.
        classes: names of the test set's classes; the bundled teacher must know these, or its labels mean nothing.

    Raises:
        ModelError: the teacher cannot be read, or knows other classes.
    """
    folder = teacher_folder(name)
    teacher = load_teacher(folder)
    teacher_classes = read_json(folder / CONFIG)["classes"]
    # A user's own teacher may name its classes otherwise; only the bundled one is known to mean these.
    if name == BUNDLED and list(classes) != teacher_classes:
        raise ModelError("the bundled teacher knows Fashion-MNIST's classes only; give --teacher, or --label-kind hard")
    return teacher


def teacher_folder(name: str) -> Path:
    """Return the directory of a teacher."""
    return Path(str(resources.files("d4m_fast") / "assets" / "teacher")) if name == BUNDLED else Path(name)


def weights_sha256(name: str) -> str:
    """Return the SHA-256 of a teacher's weights."""
    with files.open_regular(teacher_folder(name) / WEIGHTS) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_config(path: Path) -> ConvNet:
    try:
        config = read_json(path)
        if config["norm"] not in ("batch", "instance"):
            raise ValueError(f"norm {config['norm']!r}")
        width, depth, size = (int(config[key]) for key in ("width", "depth", "image_size"))
        # Each block halves the side of the image.
        if min(width, depth, size >> depth, len(config["classes"])) < 1:
            raise ValueError("width, depth and classes must be at least 1, and a pixel of image_size be left")
        return ConvNet(len(config["classes"]), width=width, depth=depth, norm=config["norm"], image_size=size)
    except OSError as error:
        raise ModelError(f"{path}: the teacher's config cannot be read ({_line(error)})") from error
    except KeyError as error:
        raise ModelError(f"{path}: the teacher's config has no {error}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path}: not a teacher's config ({_line(error)})") from error


def _check_fit(model: ConvNet, state: dict[str, torch.Tensor], path: Path) -> None:
    expected = model.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise ModelError(f"{path}: {name} is missing")
        if name not in expected:
            raise ModelError(f"{path}: {name} is not part of the teacher")
        shape, expected_shape = tuple(state[name].shape), tuple(expected[name].shape)
        if shape != expected_shape:
            raise ModelError(f"{path}: {name} has shape {shape} where the config says {expected_shape}")


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def labeller(teacher: ConvNet) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a quick form of the teacher: pixels (N, 3, S, S) in [0, 1] to logits (N, classes), no gradients.

    Batch normalisation is folded into the convolutions, and activations stay in oneDNN's blocked layout between
    them where PyTorch has it; logits equal the plain teacher's to rounding (1e-4).
    """
    convolutions = []
    for block in teacher.blocks:
        convolution, norm, *_ = cast(nn.Sequential, block)
        if isinstance(norm, nn.BatchNorm2d):  # instance normalisation depends on the image: it cannot be folded
            convolutions.append(fuse_conv_bn_eval(cast(nn.Conv2d, convolution), norm))
    is_folded = len(convolutions) == len(teacher.blocks)
    is_quick = is_folded and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def label(pixels: torch.Tensor) -> torch.Tensor:
        if not is_quick:
            return cast(torch.Tensor, teacher(pixels))
        x = ((pixels - teacher.mean) / teacher.std).to_mkldnn()
        for layer in convolutions:
            x = F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1).relu_(), 2)
        return cast(torch.Tensor, teacher.head(x.to_dense().flatten(1)))

    return label
