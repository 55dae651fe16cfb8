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
    kind: str
    notes: tuple[str, ...] = ()

    def read(self, item: Item) -> Image.Image:
        pixels = self.images[int(item.origin.rpartition("/")[2])]
        margins = [(0, 0)] * pixels.ndim
        for axis in (0, 1):  # the colours, where there are any, are the third
            missing = max(0, _MIN_SIDE - pixels.shape[axis])
            margins[axis] = (missing // 2, missing - missing // 2)
        return Image.fromarray(np.pad(pixels, margins)).convert("RGB")


def arrays_below(root: Path, split: str, prompts: Prompts) -> ArraySource | None:
    """Return the IDX or CIFAR files of a directory; None when it has none.

    Raises:
        DataError: they are incomplete or damaged.
    """
    if any(idx.find(root, name) for name in idx.FILES):
        return _open_idx(root, split, prompts)
    folders = [folder for folder in _CIFAR if (root / folder).is_dir()]
    if len(folders) > 1:
        raise DataError(f"{root}: holds both CIFAR-10 and CIFAR-100; give {root / folders[0]} or {root / folders[1]}")
    if folders:
        return _open_cifar(root / folders[0], split, prompts)
    if root.name in _CIFAR:
        return _open_cifar(root, split, prompts)
    idx.refuse_others(root, split)
    return None


def _archive() -> Traversable:
    return resources.files("d4m_fast") / "assets" / "fashion-mnist.npz"


def bundled(split: str, prompts: Prompts) -> ArraySource:
    """Return the images that ship with the package.

    Raises:
        DataError: the file is missing or damaged.
    """
    archive = _archive()
    try:
        with archive.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive}: the bundled images cannot be read ({error}); install the package again") from error
    return array_source(
        "the bundled images", str(archive), "fashion-mnist", split, images, labels, FASHION_MNIST, prompts
    )


def _open_idx(root: Path, split: str, prompts: Prompts) -> ArraySource:
    files = idx.find(root, split)
    if files is None:
        raise DataError(f"{root}: no {' and '.join(idx.FILES[split])} for the {split} split; add both files")
    images, labels = map(idx.read, files)
    set_name = _name_of_set(root, files, split)
    class_names = None if set_name is None else NAMES[set_name]
    # Called Fashion-MNIST whatever it is: the kind is part of the fingerprint, by which runs that are there go on.
    return array_source("IDX files", str(root), "fashion-mnist", split, images, labels, class_names, prompts)


def _name_of_set(root: Path, files: tuple[Path, Path], split: str) -> str | None:
    """Return the known set that a split's files are of; None where they are of none.

    Raises:
        DataError: the files of the other split are there, and are of another set.
    """
    name = known_set(*files)
    other_split = next(candidate for candidate in idx.FILES if candidate != split)
    other_files = idx.find(root, other_split)
    if other_files is None:
        return name
    other_name = known_set(*other_files)
    if other_name != name:
        raise DataError(
            f"{root}: {split} is {_named_set(name)} but {other_split} is {_named_set(other_name)}; take both splits"
            " from one set, or move one away"
        )
    return name


def _named_set(name: str | None) -> str:
    return "no set known by its checksums" if name is None else name


def _open_cifar(root: Path, split: str, prompts: Prompts) -> ArraySource:
    datasets = importlib.import_module("torchvision.datasets")  # slow: it imports torch
    try:
        # These files are pickles. torchvision compares each with its published MD5 before it loads it.
        cifar = getattr(datasets, _CIFAR[root.name])(str(root.parent), train=split == "train", download=False)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{root}: a file is missing or fails its MD5 check; fetch the set again") from error
    labels = np.asarray(cifar.targets, np.int64)
    return array_source("CIFAR files", str(root), root.name, split, cifar.data, labels, cifar.classes, prompts)


def array_source(
    stored_in: str,
    place: str,
    kind: str,
    split: str,
    images: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str] | None,
    prompts: Prompts,
) -> ArraySource:
    """Return a source: all classes of `names`, or where there are none those of the labels, 0 or 1 to the largest.

    Args:
        stored_in: what the images are stored in, in words.
        place: where.
        kind: of the set, a part of its fingerprint.
        split: in the items' origins.
        images: (N, H, W) or (N, H, W, 3) uint8.
        labels: (N,) whole numbers.
    """
    are_images = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3))
    if not are_images or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        shapes = f"images {images.shape} {images.dtype}, labels {labels.shape} {labels.dtype}"
        raise DataError(f"{kind}: {shapes} do not belong together; fetch the set again")
    labels = labels.astype(np.int64)
    stop = len(names) if names is not None else int(labels.max(initial=-1)) + 1
    start = 1 if names is None and labels.size and labels.min() == 1 else 0
    _require_classes(kind, labels, range(start, stop))
    if names is None and prompts.given is None and prompts.needed:
        raise DataError(
            f"{place}: no set known by its checksums, {stop - start} classes (labels {start} to {stop - 1}); give"
            f" --prompts FILE with {stop - start} lines, the prompts in the order of the labels"
        )
    digits = len(str(stop - 1))  # zeros before them, so that the folders' names sort as the numbers do
    folders = [f"{label:0{digits}d}" for label in range(start, stop)]
    labels = labels - start
    return ArraySource(
        classes=class_infos(folders, names, prompts),
        items=tuple(_array_items(split, labels.tolist())),
        fingerprint=_fingerprint(kind, images, labels),
        images=images,
        kind=stored_in,
    )


def _fingerprint(kind: str, images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{kind} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _require_classes(kind: str, labels: np.ndarray, classes: range) -> None:
    """Refuse labels that are no classes, and classes without images."""
    if labels.size and not classes.start <= labels.min() <= labels.max() < classes.stop:
        span = f"labels {labels.min()} to {labels.max()}"
        raise DataError(f"{kind}: {span} for {len(classes)} classes; is it another set?")
    empty = sorted(set(classes) - set(labels.tolist()))
    if empty or not classes:
        raise DataError(f"{kind}: no images of {len(empty):,} of {len(classes)} classes ({some(map(str, empty))})")


def _array_items(split: str, labels: Sequence[int]) -> Iterator[Item]:
    ranks: dict[int, int] = {}
    for position, label in enumerate(labels):
        ranks[label] = ranks.get(label, -1) + 1
        yield Item(class_id=label, rank=ranks[label], origin=f"{split}/{position:05d}")
