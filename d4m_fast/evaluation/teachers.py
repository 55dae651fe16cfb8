"""Teachers: their directories, whose classes they know, and the labels that they give."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from d4m_fast.errors import ModelError, UsageError
from d4m_fast.evaluation.convnet import ConvNet, Normalised
from d4m_fast.evaluation.imagenet import IMAGENET_CLASSES, imagenet_indices, imagenet_wnids
from d4m_fast.evaluation.pretrained import check_fit, load_pretrained, read_weights, widened
from d4m_fast.evaluation.students import build_student
from d4m_fast.sources.records import ClassInfo
from d4m_fast.storage import files
from d4m_fast.storage.state import read_json
from d4m_fast.wording import first_line

BUNDLED = "bundled"
CONFIG, WEIGHTS = "config.json", "model.safetensors"

Labeller = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """A network that labels images, in evaluation mode, float32, without gradients.

    Attributes:
        name: as it was asked for.
        sha256: of the file of its weights; of several files' joined.
        network: takes RGB pixels in [0, 1], (N, 3, S, S), and returns the logits of all its classes.
        classes: their names, WordNet ids where they are ImageNet's; None where nothing tells.
        image_size: S, pixels.
        columns: which logit is that of each class of the set that is evaluated; None is all, in their order.
    """

    name: str
    sha256: str
    network: nn.Module
    classes: tuple[str, ...] | None
    image_size: int
    columns: tuple[int, ...] | None = None

    def label(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of the classes that are evaluated.

        Raises:
            ModelError: one is NaN or infinite.
        """
        return self.labeller()(pixels)

    def labeller(self) -> Labeller:
        """Return `label` in its quickest form, made once for many batches."""
        logits, columns = self.all_logits(), self.columns
        return logits if columns is None else lambda pixels: logits(pixels)[:, list(columns)]

    def all_logits(self) -> Labeller:
        """Return what gives the logits of all classes that the teacher knows; errors are those of `label`."""
        quick: Labeller = labeller(self.network) if isinstance(self.network, ConvNet) else self.network

        @torch.inference_mode()
        def logits(pixels: torch.Tensor) -> torch.Tensor:
            values = quick(pixels)
            if not bool(torch.isfinite(values).all()):
                raise ModelError(f"teacher {self.name}: its logits are NaN or infinite; take other weights")
            return values

        return logits

    def to(self, device: torch.device) -> Teacher:
        """Return the same teacher on a device."""
        return dataclasses.replace(self, network=self.network.to(device))


class Ensemble(nn.Module):
    """The mean logits of several networks."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the mean logits, (N, classes)."""
        return torch.stack([network(pixels) for network in self.networks]).mean(0)


def open_teacher(name: str, classes: Sequence[ClassInfo], *, resolution: int | None = None) -> Teacher:
    """Open a teacher, and find each class of a set among those that it knows.

    Args:
        name: "bundled"; a directory of `save_teacher`; NAME=FILE, a classifier of torchvision or timm and its weights;
            NAME alone where the library has the weights in its cache; several joined by "+", whose logits are averaged.
        classes: those of the test set.
        resolution: pixels of a side that images will have; None where that is not known yet.

    Raises:
        ModelError: a teacher cannot be read, is not on this machine, or knows other classes or another size of image.
    """
    names = [name] if Path(name).is_dir() else name.split("+")  # a directory may have a plus sign in its own name
    members = list(map(_open_member, names))
    first = members[0]
    for member in members[1:]:
        if (member.classes, member.image_size) != (first.classes, first.image_size):
            raise ModelError(f"--teacher {name}: {member.name} and {first.name} differ in classes or size of images")
    if len(members) > 1:
        sha256 = hashlib.sha256("".join(member.sha256 for member in members).encode()).hexdigest()
        network = Ensemble([member.network for member in members]).eval()
        first = Teacher(name, sha256, network, first.classes, first.image_size)
    if resolution not in (None, first.image_size):
        raise ModelError(
            f"--teacher {name}: takes images of {first.image_size} pixels a side, not {resolution};"
            f" choose another teacher, or teach one with --resolution {resolution}"
        )
    return dataclasses.replace(first, columns=_columns(first, classes))


def _open_member(name: str) -> Teacher:
    network_name, equals, file = name.partition("=")
    if name == BUNDLED or Path(name).is_dir():
        return dataclasses.replace(load_teacher(teacher_folder(name)), name=name)
    try:
        network, path, size = load_pretrained(network_name, Path(file) if equals else None)
    except UsageError as error:
        raise ModelError(f"--teacher {name}: no such directory, and {error}") from error
    # Whatever else a file of other classes knows, nothing in it tells.
    count = outputs_of(network, size)
    classes = imagenet_wnids() if count == IMAGENET_CLASSES else None
    return Teacher(name, _sha256(path), network, classes, size)


def outputs_of(network: nn.Module, image_size: int) -> int:
    """Return how many classes a network has, from the logits of one image."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        logits: torch.Tensor = network(torch.zeros(1, 3, image_size, image_size, device=device))
    return logits.shape[1]


def _columns(teacher: Teacher, classes: Sequence[ClassInfo]) -> tuple[int, ...] | None:
    """Return the output of each class; None where the outputs are the classes in their order.

    Raises:
        ModelError: some class has none.
    """
    folders = [class_info.folder for class_info in classes]
    prompts = [class_info.prompt for class_info in classes]
    # A user's own teacher may name its classes otherwise; only the bundled one is known to mean these.
    if teacher.name == BUNDLED and tuple(prompts) != teacher.classes:
        raise ModelError("the bundled teacher knows Fashion-MNIST's classes only; give --teacher, or --regime hard")
    if teacher.classes is None:
        outputs = outputs_of(teacher.network, teacher.image_size)
    else:
        outputs = len(teacher.classes)
        output_of = {name: output for output, name in enumerate(teacher.classes)}
        for names in (folders, prompts):
            if output_of.keys() >= set(names):
                columns = tuple(output_of[name] for name in names)
                return None if columns == tuple(range(outputs)) else columns
        indices = imagenet_indices(folders) if teacher.classes == imagenet_wnids() else None
        if indices is not None:
            return None if indices == tuple(range(outputs)) else indices
    if outputs != len(classes):
        raise ModelError(
            f"--teacher {teacher.name}: knows {outputs} classes, the images have {len(classes)} of other names;"
            " give a teacher of these, or teach one"
        )
    return None


def save_teacher(
    model: nn.Module, folder: Path, classes: Sequence[str], *, image_size: int = 32, arch: str | None = None
) -> None:
    """Write `model.safetensors` (the model's own dtype), then `config.json`, to `folder`, made if missing.

    Args:
        model: a `ConvNet`, or a network of `build_student`, whose weights are saved as its library names them.
        classes: names in the order of the class ids, one per output of the model.
        image_size: pixels along each side of the images the model takes.
        arch: name by which `build_student` builds it anew; not needed of a `ConvNet`.

    Raises:
        ModelError: the model does not have these classes, or takes images of another size.
        PreflightError: no space, no permission, a read-only file system.
    """
    if isinstance(model, ConvNet):
        if not takes(model, image_size) or model.head.out_features != len(classes):
            raise ModelError(f"not a teacher of {len(classes)} classes and images of {image_size} pixels a side")
        config, network = _convnet_config(model), cast(nn.Module, model)
    elif isinstance(model, Normalised) and arch is not None:
        mean, std = (value.flatten().tolist() for value in (model.mean, model.std))
        config, network = {"arch": arch, "mean": mean, "std": std}, model.network
    else:
        raise ModelError(f"not a teacher: a {type(model).__name__} without a name to build it by")
    files.make_directory(folder)
    # Safetensors refuses tensors that are not contiguous, as those of a channels_last model.
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    files.write_bytes(folder / WEIGHTS, save(weights))
    config = {"classes": list(classes), **config, "image_size": image_size}
    files.write_bytes(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def _convnet_config(model: ConvNet) -> dict[str, Any]:
    first = cast(nn.Sequential, model.blocks[0])
    return {
        "width": cast(nn.Conv2d, first[0]).out_channels,
        "depth": len(model.blocks),
        "norm": "batch" if isinstance(first[1], nn.BatchNorm2d) else "instance",
    }


def takes(model: ConvNet, size: int) -> bool:
    """Whether the model's head fits images of `size` pixels a side."""
    width = cast(nn.Conv2d, cast(nn.Sequential, model.blocks[0])[0]).out_channels
    return model.head.in_features == width * (size >> len(model.blocks)) ** 2


def load_teacher(folder: Path) -> Teacher:
    """Read a teacher of `save_teacher`, half precision widened: float32, in evaluation mode, without gradients.

    Raises:
        ModelError: a file is missing or cannot be read, or the weights do not fit the config.
    """
    network, classes, image_size = _from_config(folder / CONFIG)
    inner = network.network if isinstance(network, Normalised) else network
    state = read_weights(folder / WEIGHTS)
    check_fit(inner, state, folder / WEIGHTS)
    inner.load_state_dict(widened(state))
    network.eval().requires_grad_(False)
    return Teacher(str(folder), _sha256(folder / WEIGHTS), network, classes, image_size)


def teacher_folder(name: str) -> Path:
    """Return the directory of a teacher."""
    return Path(str(resources.files("d4m_fast") / "assets" / "teacher")) if name == BUNDLED else Path(name)


def _sha256(path: Path) -> str:
    with files.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_config(path: Path) -> tuple[nn.Module, tuple[str, ...], int]:
    """Return a teacher's network of random weights, its classes and the side of its images."""
    try:
        config = read_json(path)
        classes, size = config["classes"], int(config["image_size"])
        if not isinstance(classes, list) or not classes:
            raise ValueError("classes must be a list of names")
        build = _library_network if "arch" in config else _convnet
        network = build(config, len(classes), size)
        return network, tuple(map(str, classes)), size
    except OSError as error:
        raise ModelError(f"{path}: the teacher's config cannot be read ({first_line(error)})") from error
    except KeyError as error:
        raise ModelError(f"{path}: the teacher's config has no {error}") from error
    except (UsageError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path}: not a teacher's config ({first_line(error)})") from error


def _convnet(config: dict[str, Any], classes: int, size: int) -> ConvNet:
    if config["norm"] not in ("batch", "instance"):
        raise ValueError(f"norm {config['norm']!r}")
    width, depth = int(config["width"]), int(config["depth"])
    # Each block halves the side of the image.
    if min(width, depth, size >> depth) < 1:
        raise ValueError("width and depth must be at least 1, and a pixel of image_size be left")
    return ConvNet(classes, width=width, depth=depth, norm=config["norm"], image_size=size)


def _library_network(config: dict[str, Any], classes: int, size: int) -> nn.Module:
    student = build_student(str(config["arch"]), classes=classes, image_size=size, width=1)
    mean, std = config["mean"], config["std"]
    if not isinstance(student, Normalised):
        raise ValueError(f"arch {config['arch']!r} is written as width, depth and norm")
    if not (len(mean) == len(std) == 3 and all(value > 0 for value in std)):
        raise ValueError("mean and std must be three numbers each, those of std above 0")
    return Normalised(student.network, mean, std)


def labeller(teacher: ConvNet) -> Labeller:
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
    is_on_cpu = teacher.head.weight.device.type == "cpu"
    is_quick = is_folded and is_on_cpu and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def label(pixels: torch.Tensor) -> torch.Tensor:
        if not is_quick:
            return cast(torch.Tensor, teacher(pixels))
        with torch.autocast("cpu", enabled=False):  # which has no rule for the blocked layout
            x = ((pixels - teacher.mean) / teacher.std).to_mkldnn()
            for layer in convolutions:
                x = F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1).relu_(), 2)
            return cast(torch.Tensor, teacher.head(x.to_dense().flatten(1)))

    return label
