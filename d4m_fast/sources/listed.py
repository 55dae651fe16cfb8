"""Images whose classes or split are in a list beside them: Food-101, flat validation sets, Kaggle's ImageNet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from d4m_fast.errors import DataError
from d4m_fast.sources.class_search import holds_classes, list_folders
from d4m_fast.sources.decode import decode
from d4m_fast.sources.entries import is_image, list_entries
from d4m_fast.sources.folders import folders_below
from d4m_fast.sources.ground_truth import META, TINY_LIST, classes_of_tiny, classes_of_validation
from d4m_fast.sources.labels import Prompts
from d4m_fast.sources.listing import Listed, Listing, list_images
from d4m_fast.sources.records import Item, Source
from d4m_fast.sources.tars import TarSource, open_tars
from d4m_fast.storage import files
from d4m_fast.wording import some

_VALIDATION_IMAGE = re.compile(r"(ILSVRC2012_val_[0-9]{8})\.JPEG")
_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
_KAGGLE = Path("Data", "CLS-LOC")
_MOST_LIST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class ListedSource(Listed):
    """Images below a folder, in class order; an item's origin is the path that it has in class folders.

    See `records.Source`.

    Attributes:
        names: paths below `root`, by place.
    """

    kind: str
    listing: Listing = field(repr=False)
    root: Path
    names: Sequence[str] = field(repr=False)
    notes: tuple[str, ...] = ()

    def read(self, item: Item) -> Image.Image:
        return decode(self.root / self.names[self.listing.place_of(item)])


def listed_below(root: Path, split: str, prompts: Prompts, own: Sequence[Path], indexes: Path | None) -> Source | None:
    """Return a set that is known by its layout; None where a directory is none of them.

    Raises:
        DataError: a list is damaged, or does not fit the images.
    """
    food = _food101_below(root, split, prompts)
    if food is not None:
        return food
    for base in (root / "ILSVRC" / _KAGGLE, root / _KAGGLE):
        if holds_classes(base / "train"):
            return _kaggle(root, base, split, prompts, own)
    if split == "test" and (root / "val" / TINY_LIST).is_file():
        return _tiny_validation(root / "val", prompts, _folders_if_any(root / "train"))
    if (root / TINY_LIST).is_file():
        return _tiny_validation(root, prompts, _folders_if_any(root.parent / "train"))
    return _imagenet_below(root, split, prompts, indexes)


def _imagenet_below(root: Path, split: str, prompts: Prompts, indexes: Path | None) -> Source | None:
    """Return ImageNet as its own archives, or its validation images as they are unpacked: side by side."""
    flat = root / "val" if split == "test" else root
    if _is_flat_validation(flat):
        places = (flat, flat.parent, flat.parent.parent)
        return _flat_validation(flat, places, prompts, _folders_if_any(flat.parent / "train"))
    archive = root / _ARCHIVES[split]
    if not archive.is_file() or any(holds_classes(root / name) for name in ("train", "val")):
        return None
    if split == "train":
        return open_tars([archive], str(archive), split, prompts, indexes)
    return _packed_validation(archive, root, prompts, indexes)


def _kaggle(root: Path, base: Path, split: str, prompts: Prompts, own: Sequence[Path]) -> Source:
    if split == "train" or holds_classes(base / "val"):
        source = folders_below(base / ("train" if split == "train" else "val"), split, prompts, own)
        return replace(source, kind="Kaggle's tree of ImageNet, folders of images")
    places = (root, root.parent, base / "val")
    return _flat_validation(base / "val", places, prompts, _folders_if_any(base / "train"))


def _is_flat_validation(folder: Path) -> bool:
    if not folder.is_dir() or list_folders(folder):
        return False
    return any(_VALIDATION_IMAGE.fullmatch(entry.name) for entry in list_entries(str(folder)))


def _flat_validation(folder: Path, places: Iterable[Path], prompts: Prompts, folders: Set[str]) -> ListedSource:
    classes = classes_of_validation(*places)
    if classes is None:
        raise DataError(
            f"{folder}: ImageNet's validation images without their classes; put Kaggle's LOC_val_solution.csv, the"
            f" devkit (ILSVRC2012_devkit_t12.tar.gz) or torchvision's {META} beside them"
        )
    by_name = {f"{stem}.JPEG": wnid for stem, wnid in classes.items()}
    kind = "ImageNet's validation images, classes by a list"
    return _listed(folder, by_name, folders, kind, prompts)


def _tiny_validation(folder: Path, prompts: Prompts, folders: Set[str]) -> ListedSource:
    classes = classes_of_tiny(folder / TINY_LIST)
    images = folder / "images"
    return _listed(images, classes, folders, "Tiny-ImageNet's validation images, classes by a list", prompts)


def _listed(folder: Path, class_of: Mapping[str, str], folders: Set[str], kind: str, prompts: Prompts) -> ListedSource:
    """Return the images of a folder by the class of each name.

    Args:
        folders: those of the train split; none where there is none.

    Raises:
        DataError: an image is not in the list, or the classes are not those of the train split.
    """
    sizes = _sizes_in(folder)
    names = sorted(name for name in sizes if is_image(name))
    unlisted = [name for name in names if name not in class_of]
    if unlisted or not names:
        raise DataError(
            f"{folder}: {len(unlisted):,} of {len(names):,} images are not in their list ({some(unlisted)})"
        )
    unshared = folders ^ {class_of[name] for name in names} if folders else ()
    if unshared:
        raise DataError(f"{folder}: its classes and those of train/ are not the same ({some(sorted(unshared))})")
    paths = [f"{class_of[name]}/{name}" for name in names]
    listing = list_images(str(folder), paths, np.array([sizes[name] for name in names]), None, prompts)
    missing = len(class_of) - len(names)
    notes = (f"{missing:,} images of the list are not there",) if missing else ()
    return ListedSource(kind, listing, folder, names, notes)


def _packed_validation(archive: Path, root: Path, prompts: Prompts, indexes: Path | None) -> TarSource:
    classes = classes_of_validation(root)
    if classes is None:
        raise DataError(f"{archive}: its images are without classes; put ILSVRC2012_devkit_t12.tar.gz beside it")
    by_name = {f"{stem}.JPEG": wnid for stem, wnid in classes.items()}
    return open_tars([archive], str(archive), "test", prompts, indexes, class_of=by_name)


def _food101_below(root: Path, split: str, prompts: Prompts) -> ListedSource | None:
    """Return the images of Food-101 that are in the list of a split; None where a directory is another set."""
    folder = next((place for place in (root, root / "food-101") if (place / "meta" / "train.txt").is_file()), None)
    if folder is None or not (folder / "images").is_dir():
        return None
    path = folder / "meta" / f"{split}.txt"
    lines = _lines(path)
    names = [f"{line}.jpg" for line in lines]
    sizes: dict[str, int] = {}
    for class_folder in sorted({line.partition("/")[0] for line in lines}):
        if not class_folder or class_folder in (".", "..") or not (folder / "images" / class_folder).is_dir():
            raise DataError(f"{path}: there is no class folder images/{class_folder!a}; fetch the set again")
        for name, size in _sizes_in(folder / "images" / class_folder).items():
            sizes[f"{class_folder}/{name}"] = size
    missing = [name for name in names if name not in sizes]
    if missing:
        raise DataError(f"{folder}: {len(missing):,} images of {path.name} are not there ({some(missing)})")
    listing = list_images(str(folder), names, np.array([sizes[name] for name in names]), None, prompts)
    kind = f"Food-101, folders of images, split by meta/{path.name}"
    return ListedSource(kind, listing, folder / "images", names)


def _sizes_in(folder: Path) -> dict[str, int]:
    """Return the size of each file in a folder; -1 of a broken link, of which reading it says more."""
    sizes = {}
    for entry in list_entries(str(folder)):
        try:
            sizes[entry.name] = entry.stat().st_size
        except OSError:
            sizes[entry.name] = -1
    return sizes


def _lines(path: Path) -> list[str]:
    try:
        with files.open_regular(path) as file:
            lines = file.read(_MOST_LIST_BYTES).decode("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the set again") from error
    if not lines:
        raise DataError(f"{path}: names no images; fetch the set again")
    return lines


def _folders_if_any(folder: Path) -> Set[str]:
    return set(list_folders(folder)) if folder.is_dir() else frozenset()
