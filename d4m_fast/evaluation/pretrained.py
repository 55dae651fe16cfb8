"""Pretrained classifiers of torchvision and timm from files that are here already: nothing is ever downloaded."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from d4m_fast.errors import ModelError
from d4m_fast.evaluation.convnet import Normalised
from d4m_fast.evaluation.imagenet import IMAGENET_CLASSES
from d4m_fast.evaluation.students import TIMM, build_classifier
from d4m_fast.wording import first_line

# torchvision's pretrained networks lose these heads when they are opened without them.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# Published before module names could not have dots; torchvision renames them when it opens the file.
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)")
_TRANSFORM_INPUT = ("googlenet", "inception_v3")  # their published weights are of pixels normalised by 0.5


@dataclass(frozen=True, slots=True)
class Recipe:
    """Form in which published weights take images.

    Attributes:
        image_size: pixels of a side.
        cached: where the library itself would have put the file; None where it has none.
        fetch: the command that gets it there.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cached: Path | None
    fetch: str


def load_pretrained(name: str, path: Path | None) -> tuple[nn.Module, Path, int]:
    """Open a classifier with published weights, in evaluation mode, float32, without gradients.

    Args:
        name: of torchvision ("resnet18": the weights IMAGENET1K_V1) or timm.
        path: a .safetensors, or a .pth of tensors only; None is the library's own cache.

    Returns:
        The network, the file, and the pixels of a side of its images.

    Raises:
        ModelError: no file, one that cannot be read, or one of another network.
        UsageError: nobody knows the name.
    """
    # A form of fewer pixels would be another network; ImageNet's is asked for first, which knows the name or not.
    network = build_classifier(name, IMAGENET_CLASSES, 224)
    recipe = _timm_recipe(name) if is_of_timm(name) else _torchvision_recipe(name)
    if path is None:
        if recipe.cached is None or not recipe.cached.is_file():
            raise ModelError(
                f"--teacher {name}: its weights are not on this machine, and are not fetched unasked;"
                f" get them with {recipe.fetch}, or give {name}=FILE"
            )
        path = recipe.cached
    state = _renamed(read_weights(path))
    head = list(network.state_dict())[-1]
    classes = len(state[head]) if head in state and state[head].ndim else IMAGENET_CLASSES
    if classes != IMAGENET_CLASSES or recipe.image_size != 224:
        network = build_classifier(name, classes, recipe.image_size)
    check_fit(network, state, path)
    network.load_state_dict(widened(state))
    if name in _TRANSFORM_INPUT:
        network.transform_input = True  # type: ignore[assignment]
    model = Normalised(network, recipe.mean, recipe.std)
    return model.eval().requires_grad_(False), path, recipe.image_size


def is_of_timm(name: str) -> bool:
    """Whether a known name is timm's and not torchvision's, which come first."""
    from torchvision import models

    return name.startswith(TIMM) or name not in models.list_models(module=models)


def _torchvision_recipe(name: str) -> Recipe:
    from torchvision import models

    weights: Any = models.get_model_weights(name)["IMAGENET1K_V1"]
    preset = weights.transforms()
    return Recipe(
        image_size=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        cached=Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2],
        fetch=f"python -c \"import torchvision; torchvision.models.get_model('{name}', weights='IMAGENET1K_V1')\"",
    )


def _timm_recipe(name: str) -> Recipe:
    import timm
    from huggingface_hub import try_to_load_from_cache

    bare = name.removeprefix(TIMM)
    config: Any = timm.get_pretrained_cfg(bare)
    repository, file = config.hf_hub_id, "model.safetensors"
    cached = None if repository is None else try_to_load_from_cache(repository, file)
    return Recipe(
        image_size=config.input_size[-1],
        mean=tuple(config.mean),
        std=tuple(config.std),
        cached=Path(cached) if isinstance(cached, str) else None,
        fetch=f"hf download {repository} {file}",
    )


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a .safetensors, or in a file of `torch.save` that holds nothing else.

    Raises:
        ModelError: it cannot be read, or holds other things.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: the teacher's weights cannot be read ({first_line(error)})") from error
    for key in ("state_dict", "model"):  # as training scripts save them
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path}: holds no dictionary of tensors; save the network's state_dict()")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights without auxiliary heads, by the names that today's networks have for them."""
    renamed = dict[str, torch.Tensor]()
    for name, value in state.items():
        if not name.startswith(_AUXILIARY):
            renamed[_OLD_DENSENET.sub(r"\1\2", name)] = value
    return renamed


def widened(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors as float32; counters of batch normalisation are integers, and stay so."""
    tensors = dict(state)
    for name, value in state.items():
        if value.is_floating_point():
            tensors[name] = value.float()
    return tensors


def check_fit(network: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that are not exactly those of a network.

    Raises:
        ModelError: names the first that is missing, too many, of another shape, or not finite.
    """
    expected = network.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise ModelError(f"{path}: {name} is missing")
        if name not in expected:
            raise ModelError(f"{path}: {name} is not part of the teacher")
        shape, expected_shape = tuple(state[name].shape), tuple(expected[name].shape)
        if shape != expected_shape:
            raise ModelError(f"{path}: {name} has shape {shape} where the config says {expected_shape}")
        if not bool(torch.isfinite(state[name]).all()):
            raise ModelError(f"{path}: {name} holds NaN or infinity; take another copy of the weights")
