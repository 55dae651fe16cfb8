"""Give the classes of labels folders: their names where these can be folders' names, else numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from d4m_fast.characters import invisible_character
from d4m_fast.errors import DataError
from d4m_fast.sources.class_names import WNID
from d4m_fast.sources.entries import is_skipped
from d4m_fast.storage import files
from d4m_fast.wording import some

MOST_NAME_BYTES = 200  # of a class folder; file systems take 255, from which a prefix and a suffix are taken
_NAME_FILES = ("classes.txt", "classnames.txt", "class_names.txt", "labels.txt", "synsets.txt", "imagenet_synsets.txt")
_MOST_NAMES_BYTES = 1 << 24
_WNID_LINE = re.compile(f"({WNID.pattern})(?:[\\s,:;].*)?")


@dataclass(frozen=True, slots=True)
class NamedFolders:
    """Class folders of labels.

    Attributes:
        by_label: the folder of each label; None where the images are in their folders already.
        names: what the classes are called, by folder, where their folders are but numbers.
        by: what told them, in words; empty where the labels themselves did.
    """

    by_label: Mapping[str, str] | None
    names: Mapping[str, str] | None
    by: str = ""


def is_plain_folder(name: str) -> bool:
    """Return whether a class's name can be that of a folder of a run, and is read as one again."""
    if (
        not name.strip()
        or name != name.strip()
        or "/" in name
        or len(name.encode("utf-8", "replace")) > MOST_NAME_BYTES
    ):
        return False
    return not is_skipped(name) and invisible_character(name) is None


def folders_of_names(names: Iterable[str]) -> NamedFolders:
    """Return the folders of classes that are labelled by their names."""
    ordered = sorted(set(names))
    if all(map(is_plain_folder, ordered)):
        return NamedFolders({name: name for name in ordered}, None)
    numbers = _numbers(range(len(ordered)))
    folders = dict(zip(ordered, numbers, strict=True))
    return NamedFolders(folders, dict(zip(numbers, ordered, strict=True)))


def folders_of_numbers(container: str, labels: Iterable[str], names: Sequence[str] | None) -> NamedFolders:
    """Return the folders of classes that are labelled by whole numbers.

    Args:
        labels: as text; all are there.
        names: of the labels 0, 1, ...; None where nobody knows them.

    Raises:
        DataError: a label is below zero, has no name, or some between the others are missing where there are no names.
    """
    numbers = {text: int(text) for text in labels}
    low, high = min(numbers.values()), max(numbers.values())
    if low < 0:
        raise DataError(f"{container}: images have the label {low}, which stands for no class; leave them out")
    if names is None:
        start = 1 if low == 1 else 0
        missing = sorted(set(range(start, high + 1)) - set(numbers.values()))
        if missing:
            raise DataError(
                f"{container}: no images of {len(missing):,} of {high + 1 - start} classes ({some(map(str, missing))})"
            )
        folders = _numbers(range(start, high + 1))
        return NamedFolders({text: folders[number - start] for text, number in numbers.items()}, None)
    if high >= len(names):
        raise DataError(f"{container}: the label {high}, but names for {len(names)} classes only; add the others")
    if len(set(names)) == len(names) and all(map(is_plain_folder, names)):
        return NamedFolders({text: names[number] for text, number in numbers.items()}, None)
    folders = _numbers(range(len(names)))
    by_label = {text: folders[number] for text, number in numbers.items()}
    return NamedFolders(by_label, dict(zip(folders, names, strict=True)))


def are_nameless(folders: NamedFolders) -> bool:
    """Return whether the folders are numbers that nobody has names for."""
    return folders.by_label is not None and folders.names is None and all(map(str.isdecimal, folders.by_label.values()))


def names_beside(place: Path) -> list[str] | None:
    """Return the names in a file of class names in a folder, or in the one above; None where there is none.

    One line is one class, in the order of the labels; of lines that begin with WordNet ids these are taken.

    Raises:
        DataError: it cannot be read, or has blank lines.
    """
    for file in (folder / name for folder in (place, place.parent) for name in _NAME_FILES):
        if file.is_file():
            return _names_in(file)
    return None


def _names_in(file: Path) -> list[str]:
    try:
        with files.open_regular(file) as stream:
            text = stream.read(_MOST_NAMES_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); save it as UTF-8") from error
    names = text.strip().splitlines()
    if len(text) > _MOST_NAMES_BYTES or not names or not all(map(str.strip, names)):
        raise DataError(f"{file}: one line for each class is needed, none blank")
    wnid_lines = list(map(_WNID_LINE.fullmatch, names))
    if all(wnid_lines):
        return [line[1] for line in wnid_lines if line]
    return list(map(str.strip, names))


def _numbers(span: range) -> list[str]:
    """Return numbers with zeros before them, so that folders of these names sort as the numbers do."""
    digits = len(str(span[-1]))
    return [f"{number:0{digits}d}" for number in span]
