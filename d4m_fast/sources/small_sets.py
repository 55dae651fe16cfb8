"""SVHN and STL-10 in the files that torchvision downloads: a MAT-file of both images and labels, and plain bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from d4m_fast.errors import DataError
from d4m_fast.sources.arrays import ArraySource, array_source
from d4m_fast.sources.entries import read_at_most
from d4m_fast.sources.idx_sets import DIGITS
from d4m_fast.sources.labels import Prompts
from d4m_fast.sources.mat import read_mat

_SVHN_NAMES = tuple(f"house number {name}" for name in DIGITS)
_STL10_FOLDER = "stl10_binary"
_STL10_SHAPE = (-1, 3, 96, 96)
_MOST_STL10_BYTES = 1 << 29  # of a file; the largest labelled one has 221 MB


def svhn_below(root: Path, split: str, prompts: Prompts) -> ArraySource | None:
    """Return SVHN's images, in cut-out digits of 32 x 32; None where its files are not there.

    Raises:
        DataError: the file of the split is missing or damaged.
    """
    paths = {name: root / f"{name}_32x32.mat" for name in ("train", "test")}
    if not any(path.is_file() for path in paths.values()):
        return None
    path = paths[split]
    if not path.is_file():
        raise DataError(f"{root}: no {path.name} for the {split} split; add it")
    variables = read_mat(path)
    images, labels = variables.get("X"), variables.get("y")
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray) or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: holds no X of 32 x 32 x 3 x n and no y; fetch it again")
    labels = labels.ravel().astype(np.int64)
    # The files call the digit 0 class 10.
    labels = np.where(labels == 10, 0, labels)
    images = np.ascontiguousarray(np.moveaxis(images, -1, 0)) if images.ndim == 4 else images[None]
    return array_source("a MAT-file", str(root), "svhn", split, images, labels, _SVHN_NAMES, prompts)


def stl10_below(root: Path, split: str, prompts: Prompts) -> ArraySource | None:
    """Return STL-10's labelled images; None where its files are not there.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = root if root.name == _STL10_FOLDER else root / _STL10_FOLDER
    if not folder.is_dir():
        return None
    images, labels = _bytes(folder / f"{split}_X.bin"), _bytes(folder / f"{split}_y.bin")
    if images.size != labels.size * 3 * 96 * 96:
        raise DataError(f"{folder}: {images.size:,} bytes of images for {labels.size:,} labels; fetch the set again")
    # By columns, as MATLAB has them.
    turned = np.ascontiguousarray(images.reshape(_STL10_SHAPE).transpose(0, 3, 2, 1))
    names = _bytes(folder / "class_names.txt").tobytes().decode("utf-8", "replace").split()
    return array_source("binary files", str(root), "stl10", split, turned, labels.astype(np.int64) - 1, names, prompts)


def _bytes(path: Path) -> np.ndarray:
    return np.frombuffer(read_at_most(path, _MOST_STL10_BYTES), np.uint8)
