"""Directories of class folders, listed as torchvision's ImageFolder lists them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from d4m_fast.data import formats
from d4m_fast.data.decode import decode
from d4m_fast.data.labels import class_infos, some
from d4m_fast.data.records import ClassInfo, Item
from d4m_fast.errors import DataError

EXTENSIONS = formats.EXTENSIONS
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
_RUN_FILES = ("plan.json", "config.json", "manifest.jsonl")
_UNUSABLE = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")  # a lone surrogate stands for a byte that is not UTF-8


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A directory of class folders; an item's origin is its path below `root`. See `records.Source`."""

    classes: tuple[ClassInfo, ...]
    items: tuple[Item, ...] = field(repr=False)
    fingerprint: str
    root: Path

    def read(self, item: Item) -> Image.Image:
        return decode(self.root / item.origin)


def folders_below(root: Path, split: str, prompts: str | None) -> FolderSource:
    """The class folders of a directory; `DataError` when there are none, or one has no images."""
    root = _image_root(root, split)
    folders = _class_folders(root)
    if not folders:
        raise DataError(f"{root}: no class folders; --data takes a directory with one folder of images per class")
    seen = frozenset([_identity(str(root))])
    files = [_images(root, folder, seen) for folder in folders]
    _check_classes(root, folders, files)
    return FolderSource(
        classes=class_infos(folders, None, prompts),
        items=tuple(Item(i, rank, path) for i, found in enumerate(files) for rank, (path, _) in enumerate(found)),
        fingerprint=_fingerprint(folders, files),
        root=root,
    )


def _image_root(root: Path, split: str) -> Path:
    """Where the class folders are: the split's folder, a run's `images`, or `root` itself."""
    images = root / "images"
    if _holds_classes(images) and (_is_run(root) or _class_folders(root) == ["images"]):
        return images
    splits = [name for names in SPLIT_FOLDERS.values() for name in names if _holds_classes(root / name)]
    if not splits:
        return root
    mine = [name for name in splits if name in SPLIT_FOLDERS[split]]
    if not mine:
        raise DataError(f"{root}: has {splits[0]}/ but no {' or '.join(SPLIT_FOLDERS[split])}/ with class folders")
    _check_same_classes(root, mine[0], splits[0])
    return root / mine[0]


def _is_run(root: Path) -> bool:
    return any((root / name).is_file() for name in _RUN_FILES)


def _holds_classes(path: Path) -> bool:
    """Whether it is a directory of directories; a class that happens to be called `train` has images in it instead."""
    return path.is_dir() and bool(_class_folders(path)) and not any(_is_image(e.name) for e in _entries(str(path)))


def _check_same_classes(root: Path, mine: str, other: str) -> None:
    # Class ids are positions in the list of folders, so a missing folder would shift every label after it.
    differ = set(_class_folders(root / mine)) ^ set(_class_folders(root / other))
    if differ:
        raise DataError(f"{root}: {mine}/ and {other}/ hold different class folders ({some(sorted(differ))})")


def _class_folders(root: Path) -> list[str]:
    folders = sorted(entry.name for entry in _entries(str(root)) if _is_dir(entry) and not entry.name.startswith("."))
    _check_names(str(root), folders)
    return folders


def _check_names(path: str, names: Iterable[str]) -> None:
    wrong = next((name for name in names if _UNUSABLE.search(name)), None)
    if wrong is not None:
        raise DataError(f"{path}: the name {wrong!a} is not UTF-8, or has control characters; rename it")


def _images(root: Path, folder: str, seen: frozenset[tuple[int, int]]) -> list[tuple[str, int]]:
    """(path below the root, bytes) of a class's images, in torchvision's order: by directory, then by name."""
    found: dict[str, list[tuple[str, int]]] = {}
    _collect(str(root), folder, seen, found)
    return [(f"{directory}/{name}", size) for directory in sorted(found) for name, size in sorted(found[directory])]


def _collect(root: str, folder: str, seen: frozenset[tuple[int, int]], found: dict[str, list[tuple[str, int]]]) -> None:
    path = f"{root}/{folder}"
    identity = _identity(path)
    if identity in seen:  # a link to a directory above
        return
    entries = [entry for entry in _entries(path) if not entry.name.startswith(".")]
    below = {entry.name for entry in entries if _is_dir(entry)}
    found[folder] = [(e.name, _size(e)) for e in entries if e.name not in below and _is_image(e.name)]
    _check_names(path, [*below, *(name for name, _ in found[folder])])
    for name in below:
        _collect(root, f"{folder}/{name}", seen | {identity}, found)


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror})") from error


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror})") from error
    return status.st_dev, status.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link: stays in the list, and `read` says what is wrong with it
        return -1


def _check_classes(root: Path, folders: Sequence[str], files: Sequence[Sequence[tuple[str, int]]]) -> None:
    empty = [folder for folder, found in zip(folders, files, strict=True) if not found]
    if len(empty) == len(folders):
        raise DataError(f"{root}: no images in its {len(folders):,} class folders ({', '.join(EXTENSIONS)})")
    if empty:
        raise DataError(f"{root}: class folders without images: {some(empty)}; remove or fill them")


def _fingerprint(folders: Sequence[str], files: Sequence[Sequence[tuple[str, int]]]) -> str:
    digest = hashlib.sha256()
    for folder, found in zip(folders, files, strict=True):
        digest.update(f"{folder}\0{len(found)}\n".encode())
        for path, size in found:
            digest.update(f"{path}\0{size}\n".encode())
    return digest.hexdigest()
