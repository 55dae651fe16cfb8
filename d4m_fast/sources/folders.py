"""Directories of class folders, listed as torchvision's ImageFolder lists them, but for numbers."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
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
from d4m_fast.sources.walk import Sized, Walk
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
    """The class folders of a directory.

    Args:
        own: directories that d4m-fast writes to, which are never classes.

    Raises:
        DataError: there are no classes, one has no images or cannot be read, or they lie elsewhere.
    """
    require_real_folder(str(root))
    given, root = root, image_root(root, split)
    walk = Walk(str(root), frozenset(identify(str(path)) for path in own if os.path.exists(path)))
    listed = {folder: walk.images(folder) for folder in in_class_order(walk.class_folders())}
    images = {folder: found for folder, found in listed.items() if found is not None}
    folders, files = list(images), list(images.values())
    _check_names(root, folders)
    _check_classes(root, folders, files, walk.beside)
    require_one_level(root, {folder: walk.inner[folder] for folder in folders}, walk.bare)
    return FolderSource(
        classes=_with_prompts(class_infos(folders, None, prompts)),
        items=tuple(Item(i, rank, path) for i, found in enumerate(files) for rank, (path, _) in enumerate(found)),
        fingerprint=_fingerprint(folders, files),
        root=root,
        notes=(*unread_beside(given, root), *_alone(folders), *walk.notes),
    )


def in_class_order(folders: Sequence[str]) -> list[str]:
    """As numbers where all folders are numbers, else as text, which is torchvision's order."""
    if all(_NUMBER.fullmatch(folder) for folder in folders):
        return sorted(folders, key=lambda folder: (int(folder), folder))
    return sorted(folders)


def _check_names(root: Path, folders: Sequence[str]) -> None:
    composed: dict[str, str] = {}
    for folder in folders:
        character = invisible_character(folder)
        if character is not None:
            raise DataError(f"{root}: the folder {folder!a} has {character} in its name; rename it")
        if not folder.strip():
            raise DataError(f"{root}: a folder is called {folder!a}, which nobody sees; rename it")
        if composed.setdefault(unicodedata.normalize("NFC", folder), folder) != folder:
            raise DataError(f"{root}: two folders are called {folder}, with accents stored apart in one; rename one")


def _alone(folders: Sequence[str]) -> tuple[str, ...]:
    """One folder may be a whole set that is not sorted by classes."""
    return (f"one class only: {folders[0]}",) if len(folders) == 1 else ()


def _with_prompts(classes: tuple[ClassInfo, ...]) -> tuple[ClassInfo, ...]:
    blank = next((info.folder for info in classes if not info.prompt.strip()), None)
    if blank is not None:
        raise DataError(f"class {blank!a}: its name is no prompt; rename it or give --prompts FILE")
    return classes


def _check_classes(root: Path, folders: Sequence[str], files: Sequence[Sequence[Sized]], beside: int) -> None:
    if not folders:
        raise DataError(f"{root}: no class folders; --data takes a directory with one folder of images per class")
    empty = [folder for folder, found in zip(folders, files, strict=True) if not found]
    if len(empty) == len(folders):
        raise DataError(f"{root}: no images in its {len(folders):,} class folders ({', '.join(EXTENSIONS)})")
    if empty:
        raise DataError(f"{root}: class folders without images: {some(empty)}; remove or fill them")
    count = sum(map(len, files))
    if beside > count:
        raise DataError(
            f"{root}: more images beside its class folders ({beside:,}) than in them ({count:,}); put each into the"
            " folder of its class"
        )


def _fingerprint(folders: Sequence[str], files: Sequence[Sequence[Sized]]) -> str:
    digest = hashlib.sha256()
    for folder, found in zip(folders, files, strict=True):
        digest.update(f"{folder}\0{len(found)}\n".encode())
        for path, size in found:
            digest.update(f"{path}\0{size}\n".encode())
    return digest.hexdigest()
