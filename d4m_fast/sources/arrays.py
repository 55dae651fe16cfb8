"""Data sets held in arrays: the bundled Fashion-MNIST, its IDX files, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import hashlib
import importlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from PIL import Image

from d4m_fast.errors import DataError
from d4m_fast.sources import idx
from d4m_fast.sources.idx_sets import FASHION_MNIST, NAMES, known_set
from d4m_fast.sources.labels import Prompts, class_infos
from d4m_fast.sources.records import ClassInfo, Item
from d4m_fast.wording import some

_CIFAR = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}
_MIN_SIDE = 32


@dataclass(frozen=True, slots=True)
class ArraySource:
    """Images (N, H, W) or (N, H, W, 3) uint8 in memory; an item's origin is SPLIT/position. See `records.Source`.

    Sides under 32 pixels are padded to 32 with zeros, the image in the middle.
    """

    classes: tuple[ClassInfo, ...]
    items: tuple[Item, ...] = field(repr=False)
    fingerprint: str
    images: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()

    def read(self, item: Item) -> Image.Image:
        pixels = self.images[int(item.origin.rpartition("/")[2])]
        margins = [_margins(side) for side in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2)
        return Image.fromarray(np.pad(pixels, margins)).convert("RGB")


def arrays_below(root: Path, split: str, prompts: Prompts) -> ArraySource | None:
    """The IDX or CIFAR files of a directory; None when it has none, `DataError` when they are incomplete or damaged."""
    if any(idx.find(root, name) for name in idx.FILES):
        return _idx(root, split, prompts)
    found = [folder for folder in _CIFAR if (root / folder).is_dir()]
    if len(found) > 1:
        raise DataError(f"{root}: holds both CIFAR-10 and CIFAR-100; give {root / found[0]} or {root / found[1]}")
    if found or root.name in _CIFAR:
        return _cifar(root if found else root.parent, found[0] if found else root.name, split, prompts)
    idx.refuse_others(root, split)
    return None


def _archive() -> Traversable:
    return resources.files("d4m_fast") / "assets" / "fashion-mnist.npz"


def bundled(split: str, prompts: Prompts) -> ArraySource:
    """The images that ship with the package; `DataError` when the file is missing or damaged."""
    archive = _archive()
    try:
        with archive.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive}: the bundled images cannot be read ({error}); install the package again") from error
    return _array_source(str(archive), "fashion-mnist", split, images, labels, FASHION_MNIST, prompts)


def _idx(root: Path, split: str, prompts: Prompts) -> ArraySource:
    files = idx.find(root, split)
    if files is None:
        raise DataError(f"{root}: no {' and '.join(idx.FILES[split])} for the {split} split; add both files")
    images, labels = (idx.read(path) for path in files)
    name = _name_of_set(root, files, split)
    # The kind is part of the fingerprint, and of runs that are there.
    return _array_source(
        str(root), "fashion-mnist", split, images, labels, None if name is None else NAMES[name], prompts
    )


def _name_of_set(root: Path, files: tuple[Path, Path], split: str) -> str | None:
    """The known set that a split's files are, if those of the other split, where they are there, are the same set's."""
    name = known_set(*files)
    other_split = next(other for other in idx.FILES if other != split)
    others = idx.find(root, other_split)
    if others is not None and known_set(*others) != name:
        unknown = "no set known by its checksums"
        names = ((split, name), (other_split, known_set(*others)))
        sets = [f"{part} is {unknown if known is None else known}" for part, known in names]
        raise DataError(f"{root}: {' but '.join(sets)}; take both splits from one set, or move one away")
    return name


def _cifar(root: Path, folder: str, split: str, prompts: Prompts) -> ArraySource:
    datasets = importlib.import_module("torchvision.datasets")  # slow: it imports torch
    try:
        # These files are pickles. torchvision compares each with its published MD5 before it loads it.
        loaded = getattr(datasets, _CIFAR[folder])(str(root), train=split == "train", download=False)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{root / folder}: a file is missing or fails its MD5 check; fetch the set again") from error
    labels = np.asarray(loaded.targets, np.int64)
    return _array_source(str(root / folder), folder, split, loaded.data, labels, loaded.classes, prompts)


def _array_source(
    place: str,
    kind: str,
    split: str,
    images: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str] | None,
    prompts: Prompts,
) -> ArraySource:
    """A set of known names has all of their classes; any other has those of its labels, 0 or 1 to the largest."""
    _check_arrays(kind, images, labels)
    labels = labels.astype(np.int64)
    count = len(names) if names is not None else int(labels.max(initial=-1)) + 1
    first = 1 if names is None and labels.size and labels.min() == 1 else 0
    _check_labels(kind, labels, range(first, count))
    folders = [f"{i:0{len(str(count - 1))}d}" for i in range(first, count)]
    labels = labels - first
    if names is None and prompts.given is None and prompts.needed:
        raise DataError(
            f"{place}: no set known by its checksums, {count - first} classes (labels {first} to {count - 1}); give"
            f" --prompts FILE with {count - first} lines, the prompts in the order of the labels"
        )
    return ArraySource(
        classes=class_infos(folders, names, prompts),
        items=tuple(_array_items(split, labels.tolist())),
        fingerprint=_fingerprint(kind, images, labels),
        images=images,
    )


def _fingerprint(kind: str, images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{kind} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _check_arrays(kind: str, images: np.ndarray, labels: np.ndarray) -> None:
    pictures = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3))
    if not pictures or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        shapes = f"images {images.shape} {images.dtype}, labels {labels.shape} {labels.dtype}"
        raise DataError(f"{kind}: {shapes} do not belong together; fetch the set again")


def _check_labels(kind: str, labels: np.ndarray, classes: range) -> None:
    if labels.size and not classes.start <= labels.min() <= labels.max() < classes.stop:
        found = f"labels {labels.min()} to {labels.max()}"
        raise DataError(f"{kind}: {found} for {len(classes)} classes; is it another set?")
    empty = sorted(set(classes) - set(labels.tolist()))
    if empty or not classes:
        raise DataError(f"{kind}: no images of {len(empty):,} of {len(classes)} classes ({some(map(str, empty))})")


def _array_items(split: str, labels: Sequence[int]) -> Iterator[Item]:
    ranks: dict[int, int] = {}
    for position, label in enumerate(labels):
        ranks[label] = ranks.get(label, -1) + 1
        yield Item(class_id=label, rank=ranks[label], origin=f"{split}/{position:05d}")


def _margins(side: int) -> tuple[int, int]:
    room = max(0, _MIN_SIDE - side)
    return room // 2, room - room // 2
