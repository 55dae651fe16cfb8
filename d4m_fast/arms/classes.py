"""A part of a finished set: some of its classes, without generating anything (D4M-G of the paper)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from d4m_fast.errors import DataError, UsageError
from d4m_fast.evaluation.images import ids_by_folder, images_per_class
from d4m_fast.sources.dataset import subset, with_classes
from d4m_fast.sources.records import Source
from d4m_fast.storage import files
from d4m_fast.wording import some


def part_of(distilled: Source, test: Source, classes: str) -> Source:
    """Return the classes of a distilled set that `--classes` names.

    Args:
        test: the set whose class ids count; in it the classes are looked up.
        classes: folder names, ids and ranges of ids of `test`, separated by commas; or a file with a folder name at
            the start of each line, as Tiny-ImageNet's `wnids.txt` has them.

    Raises:
        UsageError: `test` has no such class.
        DataError: the distilled set has not, or the file cannot be read.
    """
    # Not Path.is_file, which fails on a list that is longer than the name of a file may be.
    if os.path.isfile(classes):
        folders = _folders_in(Path(classes), test)
    else:
        folders = [class_info.folder for class_info in subset(test, classes).classes]
    ids = ids_by_folder(distilled)
    missing = [folder for folder in folders if folder not in ids]
    if missing:
        raise DataError(
            f"--classes: {len(missing)} of {len(folders)} classes are not in the distilled set: {some(missing)};"
            " leave them out"
        )
    return with_classes(distilled, {ids[folder] for folder in folders})


def _folders_in(file: Path, test: Source) -> list[str]:
    """Return the first words of a file's lines, all of which must be classes of the test set."""
    try:
        lines = files.read_regular(file).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes {file}: cannot be read ({error}); give a text file, a class a line") from error
    folders = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not folders:
        raise DataError(f"--classes {file}: names no class; it has a folder name at the start of each line")
    test_folders = ids_by_folder(test)
    for folder in folders:
        if folder not in test_folders:
            raise UsageError(
                f"--classes {file}: no class {folder!r} in the test set; there are {some(sorted(test_folders))}"
            )
    return folders


def require_alike(distilled: Sequence[Source]) -> None:
    """Refuse distilled sets of other classes, or of another number of images per class, than the first one's.

    Raises:
        DataError: they differ, or a set is not balanced.
    """
    first, *repetitions = distilled
    folders, budget = ids_by_folder(first).keys(), images_per_class(first)
    for repetition in repetitions:
        if ids_by_folder(repetition).keys() != folders or images_per_class(repetition) != budget:
            raise DataError("the runs differ in their classes or in images per class")
