"""Directories of class folders, listed as torchvision's ImageFolder lists them, but for numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from d4m_fast.errors import DataError
from d4m_fast.sources.decode import decode
from d4m_fast.sources.entries import identify, require_real_folder
from d4m_fast.sources.formats import EXTENSIONS
from d4m_fast.sources.labels import Prompts, class_infos
from d4m_fast.sources.layouts import image_root, require_one_level, unread_beside
from d4m_fast.sources.listing import SizedFile, fingerprint_of, in_class_order, require_distinct_names, require_prompts
from d4m_fast.sources.records import ClassInfo, Item
from d4m_fast.sources.walk import Walk
from d4m_fast.wording import some


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A directory of class folders; an item's origin is its path below `root`. See `records.Source`."""

    classes: tuple[ClassInfo, ...]
    items: tuple[Item, ...] = field(repr=False)
    fingerprint: str
    root: Path
    notes: tuple[str, ...] = ()
    kind: str = "folders of images"

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
    require_distinct_names(str(class_root), files)
    _check_classes(class_root, files, walk.beside)
    require_one_level(class_root, {folder: walk.inner[folder] for folder in files}, walk.bare)
    classes = class_infos(list(files), None, prompts)
    require_prompts(classes)
    notes = list(unread_beside(root, class_root))
    if len(files) == 1:  # perhaps a whole set that is not sorted by classes
        notes.append(f"one class only: {next(iter(files))}")
    return FolderSource(
        classes=classes,
        items=tuple(_items(files.values())),
        fingerprint=fingerprint_of(files.items()),
        root=class_root,
        notes=(*notes, *walk.notes),
    )


def _items(files: Iterable[Sequence[SizedFile]]) -> Iterator[Item]:
    for class_id, class_files in enumerate(files):
        for rank, (path, _) in enumerate(class_files):
            yield Item(class_id, rank, path)


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
