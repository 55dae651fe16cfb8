"""Tell the class folder of each image in a set of tars: by labels beside the images, by folders, or by the tars' names.

A class is known from what is there, or refused; where labels and folders say the same, the folders' names are taken, so
that a set has the same classes as its class folders have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from d4m_fast.errors import DataError
from d4m_fast.sources.class_folders import NamedFolders, are_nameless, folders_of_names, folders_of_numbers
from d4m_fast.sources.class_names import WNID
from d4m_fast.sources.entries import CONTAINERS
from d4m_fast.sources.image_names import is_one_to_one, wnid_names
from d4m_fast.sources.layouts import require_one_level
from d4m_fast.sources.splits import SPLIT_KINDS, split_of
from d4m_fast.sources.tar_index import LABEL_KINDS, Section
from d4m_fast.wording import some

_WHOLE = re.compile("-?[0-9]{1,9}")
_DIGITS = re.compile("[0-9]+")


@dataclass(frozen=True, slots=True)
class Samples:
    """Images of a set of tars with their class folders.

    Attributes:
        paths: of the images, each with its class folder in front.
        places: (n,) int64, positions among the images of all sections.
        names: what the classes are called, by folder, where their folders are but numbers.
        by: what told the classes, in words.
        nameless: the folders are numbers, and nobody knows what they are called.
    """

    paths: list[str] = field(repr=False)
    places: np.ndarray = field(repr=False)
    names: Mapping[str, str] | None
    by: str
    nameless: bool = False


def samples_of(sections: Sequence[Section], container: str, split: str, class_names: Sequence[str] | None) -> Samples:
    """Return the images of a split with their classes.

    Args:
        container: what messages call the tars.
        class_names: what the labels 0, 1, ... are called, from a file beside the tars; None where there is none.

    Raises:
        DataError: there are no images, or it cannot be told of which classes they are.
    """
    names = list(chain.from_iterable(section.names for section in sections))
    if not names:
        raise DataError(f"{container}: no images in it")
    kind = next((kind for kind in LABEL_KINDS if any(kind in section.labels for section in sections)), None)
    everything = np.arange(len(names))
    if kind is not None:
        labels = _labels(sections, kind, container)
        folders = _folders_of_labels(labels, names, container, class_names)
        if folders.by_label is None:
            return Samples(names, everything, None, f"the folders, as the .{kind} files say, too")
        paths = [f"{folders.by_label[label]}/{name}" for label, name in zip(labels, names, strict=True)]
        by = folders.by if folders.by else f"the .{kind} files"
        return Samples(paths, everything, folders.names, by, nameless=are_nameless(folders))
    if all("/" in name for name in names):
        paths, places = _below_split(names, everything, container, split)
        _require_classes(container, paths)
        return Samples(paths, places, None, "the folders")
    if any("/" in name for name in names):
        bare = next(name for name in names if "/" not in name)
        raise DataError(f"{container}: {bare} is in no folder, others are; put each image into the folder of its class")
    stems = [section.stem for section in sections if section.names]
    if not _are_classes(stems):
        raise DataError(
            f"{container}: nothing tells the class of {names[0]}: no .cls, .json or .txt file beside it, no folder"
            " around it, and the tars' names are no classes"
        )
    paths = []
    for section in sections:
        paths += [f"{section.stem}/{name}" for name in section.names]
    return Samples(paths, everything, None, "the tars' names")


def samples_by_list(sections: Iterable[Section], container: str, class_of: Mapping[str, str]) -> Samples:
    """Return all images with their classes from a list.

    Args:
        class_of: the class folder by an image's name.

    Raises:
        DataError: an image is not in the list, or there are none.
    """
    names = list(chain.from_iterable(section.names for section in sections))
    unlisted = [name for name in names if name not in class_of]
    if unlisted or not names:
        raise DataError(
            f"{container}: {len(unlisted):,} of {len(names):,} images are not in their list ({some(unlisted)})"
        )
    return Samples([f"{class_of[name]}/{name}" for name in names], np.arange(len(names)), None, "a list")


def _labels(sections: Iterable[Section], kind: str, container: str) -> list[str]:
    """Return the label of every image.

    Raises:
        DataError: an image has none.
    """
    labels: list[str] = []
    for section in sections:
        for name, label in zip(section.names, section.labels.get(kind, [None] * len(section.names)), strict=True):
            if label is None:
                raise DataError(
                    f"{container}: {name} has no .{kind} file with its class beside it, others have; add it"
                )
            labels.append(label)
    return labels


def _folders_of_labels(
    labels: Sequence[str], names: Sequence[str], container: str, class_names: Sequence[str] | None
) -> NamedFolders:
    """Return the class folder of each label; none where the folders that the images are in are those."""
    tops = [name.partition("/")[0] if "/" in name else "" for name in names]
    if "" not in tops and is_one_to_one(labels, tops) and all("/" not in name.partition("/")[2] for name in names):
        return NamedFolders(None, None)
    distinct = list(dict.fromkeys(labels))
    if not all(map(_WHOLE.fullmatch, distinct)):
        return folders_of_names(distinct)
    wnids = wnid_names([name.rpartition("/")[2] for name in names])
    if wnids is not None and wnids.agree_with(labels):
        return NamedFolders(dict(zip(labels, wnids.wnids, strict=True)), None, "the WordNet ids in the images' names")
    return folders_of_numbers(container, distinct, class_names)


def _below_split(names: list[str], places: np.ndarray, container: str, split: str) -> tuple[list[str], np.ndarray]:
    """Return paths that begin with the class folder, and their places: what is around the classes is taken off.

    Raises:
        DataError: there is no such split.
    """
    while True:
        tops = sorted({name.partition("/")[0] for name in names})
        has_folders = all(name.count("/") > 1 for name in names)
        kinds = {top: split_of(top) for top in tops}
        if has_folders and None not in kinds.values():
            folder = _split_folder(tops, container, split)
            rows_of_split = [row for row, name in enumerate(names) if name.partition("/")[0] == folder]
            names, places = [names[row] for row in rows_of_split], places[rows_of_split]
        elif not has_folders or len(tops) > 1 or _is_class_of_images(names):
            return names, places
        names = [name.partition("/")[2] for name in names]


def _is_class_of_images(names: Iterable[str]) -> bool:
    """Return whether a sole folder is a class that holds its images in `images/`."""
    return all(name.count("/") == 2 and name.split("/")[1].lower() in CONTAINERS for name in names)


def _split_folder(tops: Sequence[str], container: str, split: str) -> str:
    kinds = SPLIT_KINDS[split]
    candidates = sorted((kinds.index(str(split_of(top))), top) for top in tops if split_of(top) in kinds)
    if not candidates:
        raise DataError(f"{container}: has {some(tops)}/ but no {' or '.join(kinds)}/ with class folders")
    return candidates[0][1]


def _require_classes(container: str, paths: Iterable[str]) -> None:
    """Refuse folders that hold more than a class each, by the rules for class folders on a disk."""
    inner: dict[str, Set[str]] = {}
    bare = set[str]()
    for folder in {path.rpartition("/")[0] for path in paths}:
        top, *below = folder.split("/")
        if below and below[0].lower() in CONTAINERS:
            below = below[1:]
        inner[top] = {*inner.get(top, ()), *below[:1]}
        if not below:
            bare.add(top)
    require_one_level(Path(container), inner, bare)


def _are_classes(stems: Sequence[str]) -> bool:
    """Return whether tars are classes by their names: WordNet ids, or names that do not differ in a number alone."""
    if all(map(WNID.fullmatch, stems)):
        return True
    without_numbers = {_DIGITS.sub("", stem) for stem in stems}
    return len(stems) > 1 and len(without_numbers) == len(stems)
