"""Directories of class folders, listed as torchvision's ImageFolder lists them, but for numbers."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from d4m_fast.characters import invisible_character
from d4m_fast.errors import DataError
from d4m_fast.sources.decode import decode
from d4m_fast.sources.entries import identify, require_real_folder
from d4m_fast.sources.formats import EXTENSIONS
from d4m_fast.sources.labels import Prompts, class_infos
from d4m_fast.sources.layouts import image_root, require_one_level, unread_beside
from d4m_fast.sources.records import ClassInfo, Item
from d4m_fast.sources.walk import SizedFile, Walk
from d4m_fast.wording import some

_NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A directory of class folders; an item's origin is its path below `root`. See `records.Source`."""

    classes: tuple[ClassInfo, ...]
    items: tuple[Item, ...] = field(repr=False)
    fingerprint: str
    root: Path
    notes: tuple[str, ...] = ()

    def read(self, item: Item) -> Image.Image:
        return decode(self.root / item.origin)


def folders_below(root: Path, split: str, prompts: Prompts, own: Sequence[Path] = ()) -> FolderSource:
    """Return the class folders of a directory.

    Args:
        own: directories that d4m-fast writes to, which are never classes.

    Raises:
        DataError: there are no classes, one has no images or cannot be read, or they lie elsewhere.
    """
    require_real_folder(str(root))
    class_root = image_root(root, split)
    walk = Walk(str(class_root), frozenset(identify(str(path)) for path in own if os.path.exists(path)))
    files: dict[str, list[SizedFile]] = {}
    for folder in in_class_order(walk.class_folders()):
        images = walk.images(folder)
        if images is not None:
            files[folder] = images
    _check_names(class_root, files)
    _check_classes(class_root, files, walk.beside)
    require_one_level(class_root, {folder: walk.inner[folder] for folder in files}, walk.bare)
    classes = class_infos(list(files), None, prompts)
    for class_info in classes:
        if not class_info.prompt.strip():
            raise DataError(f"class {class_info.folder!a}: its name is no prompt; rename it or give --prompts FILE")
    notes = list(unread_beside(root, class_root))
    if len(files) == 1:  # perhaps a whole set that is not sorted by classes
        notes.append(f"one class only: {next(iter(files))}")
    return FolderSource(
        classes=classes,
        items=tuple(_items(files.values())),
        fingerprint=_fingerprint(files),
        root=class_root,
        notes=(*notes, *walk.notes),
    )


def in_class_order(folders: Sequence[str]) -> list[str]:
    """Sort folders as numbers where all of them are numbers, else as text, which is torchvision's order."""
    if all(map(_NUMBER.fullmatch, folders)):
        return sorted(folders, key=lambda folder: (int(folder), folder))
    return sorted(folders)


def _items(files: Iterable[Sequence[SizedFile]]) -> Iterator[Item]:
    for class_id, class_files in enumerate(files):
        for rank, (path, _) in enumerate(class_files):
            yield Item(class_id, rank, path)


def _check_names(root: Path, folders: Iterable[str]) -> None:
    """Refuse names that nobody can see or tell apart."""
    composed: dict[str, str] = {}
    for folder in folders:
        character = invisible_character(folder)
        if character is not None:
            raise DataError(f"{root}: the folder {folder!a} has {character} in its name; rename it")
        if not folder.strip():
            raise DataError(f"{root}: a folder is called {folder!a}, which nobody sees; rename it")
        if composed.setdefault(unicodedata.normalize("NFC", folder), folder) != folder:
            raise DataError(f"{root}: two folders are called {folder}, with accents stored apart in one; rename one")


def _check_classes(root: Path, files: Mapping[str, Sequence[SizedFile]], beside: int) -> None:
    """Refuse classes without images, and classes with fewer images than lie beside them."""
    if not files:
        raise DataError(f"{root}: no class folders; --data takes a directory with one folder of images per class")
    empty = [folder for folder, class_files in files.items() if not class_files]
    if len(empty) == len(files):
        raise DataError(f"{root}: no images in its {len(files):,} class folders ({', '.join(EXTENSIONS)})")
    if empty:
        raise DataError(f"{root}: class folders without images: {some(empty)}; remove or fill them")
    count = sum(map(len, files.values()))
    if beside > count:
        raise DataError(
            f"{root}: more images beside its class folders ({beside:,}) than in them ({count:,}); put each into the"
            " folder of its class"
        )


def _fingerprint(files: Mapping[str, Sequence[SizedFile]]) -> str:
    digest = hashlib.sha256()
    for folder, class_files in files.items():
        digest.update(f"{folder}\0{len(class_files)}\n".encode())
        for path, size in class_files:
            digest.update(f"{path}\0{size}\n".encode())
    return digest.hexdigest()
