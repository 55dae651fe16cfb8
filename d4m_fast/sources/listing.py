"""Classes, items and fingerprint of a set, made of paths and sizes of images, whatever container holds them.

Every container of files is listed here, so that the same class folders, names and sizes have the same ids, ranks and
fingerprint.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from d4m_fast.characters import invisible_character
from d4m_fast.errors import DataError
from d4m_fast.sources.labels import Prompts, class_infos
from d4m_fast.sources.records import ClassInfo, Item

_MOST_NAME_BYTES = 255  # of a folder on the usual file systems; a run has one for each class
_NUMBER = re.compile("[0-9]+")

SizedFile = tuple[str, int]  # name or path, and bytes


@dataclass(frozen=True, slots=True)
class Listing:
    """Images of a container in class order, each with its place in the container.

    Attributes:
        items: by class, then by rank.
        places: (n,) int64, of the items in their order.
        starts: of each class in the items.
    """

    classes: tuple[ClassInfo, ...]
    items: tuple[Item, ...] = field(repr=False)
    fingerprint: str
    places: np.ndarray = field(repr=False)
    starts: tuple[int, ...] = field(repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """A line where there is but one class, as of a whole set that is not sorted by classes."""
        return (f"one class only: {self.classes[0].folder}",) if len(self.classes) == 1 else ()

    def place_of(self, item: Item) -> int:
        """Return the place of an item in the container, its position among the paths that were listed."""
        return int(self.places[self.starts[item.class_id] + item.rank])


class Listed:
    """Part of a `records.Source` that is its listing's, whatever container the images are in."""

    __slots__ = ()
    listing: Listing

    @property
    def classes(self) -> Sequence[ClassInfo]:
        return self.listing.classes

    @property
    def items(self) -> Sequence[Item]:
        return self.listing.items

    @property
    def fingerprint(self) -> str:
        return self.listing.fingerprint


def list_images(
    container: str, paths: Sequence[str], sizes: np.ndarray, names: Mapping[str, str] | None, prompts: Prompts
) -> Listing:
    """Return the listing of a container's images.

    Args:
        container: what messages call it.
        paths: of the images; what is before the first slash is the class's folder.
        sizes: (n,) bytes of the images.
        names: what the classes are called, by folder, where their folders are but numbers.

    Raises:
        DataError: two images have one path, or a class has no usable name.
    """
    places_by_folder: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        places_by_folder.setdefault(path.partition("/")[0], []).append(place)
    folders = in_class_order(list(places_by_folder))
    require_distinct_names(container, folders)
    items, places, starts = list[Item](), list[int](), list[int]()
    for class_id, folder in enumerate(folders):
        class_places = sorted(places_by_folder.pop(folder), key=lambda place: paths[place].rpartition("/")[::2])
        starts.append(len(items))
        places += class_places
        for rank, place in enumerate(class_places):
            items.append(Item(class_id, rank, paths[place]))
            if rank and paths[place] == items[-2].origin:
                raise DataError(f"{container}: two images are called {paths[place]}; remove one")

    def sized_files() -> Iterator[tuple[str, Sequence[SizedFile]]]:
        for folder, start, stop in zip(folders, starts, [*starts[1:], len(items)], strict=True):
            yield folder, [(paths[place], int(sizes[place])) for place in places[start:stop]]

    called = None if names is None else [names[folder] for folder in folders]
    classes = class_infos(folders, called, prompts)
    require_prompts(classes)
    return Listing(classes, tuple(items), fingerprint_of(sized_files()), np.array(places, np.int64), tuple(starts))


def in_class_order(folders: Sequence[str]) -> list[str]:
    """Sort folders as numbers where all of them are numbers, else as text, which is torchvision's order."""
    if all(map(_NUMBER.fullmatch, folders)):
        return sorted(folders, key=lambda folder: (int(folder), folder))
    return sorted(folders)


def fingerprint_of(files: Iterable[tuple[str, Sequence[SizedFile]]]) -> str:
    """Return the SHA-256 of class folders and of the paths and sizes of their images."""
    digest = hashlib.sha256()
    for folder, class_files in files:
        digest.update(f"{folder}\0{len(class_files)}\n".encode())
        for path, size in class_files:
            digest.update(f"{path}\0{size}\n".encode())
    return digest.hexdigest()


def require_distinct_names(place: str, folders: Iterable[str]) -> None:
    """Refuse names of class folders that nobody can see or tell apart, or that no folder can have."""
    composed: dict[str, str] = {}
    for folder in folders:
        character = invisible_character(folder)
        if character is not None:
            raise DataError(f"{place}: the folder {folder!a} has {character} in its name; rename it")
        if len(folder.encode("utf-8", "surrogateescape")) > _MOST_NAME_BYTES:
            raise DataError(
                f"{place}: a class called {folder[:40]}... has more than {_MOST_NAME_BYTES} bytes; rename it"
            )
        if not folder.strip():
            raise DataError(f"{place}: a folder is called {folder!a}, which nobody sees; rename it")
        if composed.setdefault(unicodedata.normalize("NFC", folder), folder) != folder:
            raise DataError(f"{place}: two folders are called {folder}, with accents stored apart in one; rename one")


def require_prompts(classes: Iterable[ClassInfo]) -> None:
    """Refuse classes whose prompt is blank."""
    for class_info in classes:
        if not class_info.prompt.strip():
            raise DataError(f"class {class_info.folder!a}: its name is no prompt; rename it or give --prompts FILE")
