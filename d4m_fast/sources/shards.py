"""Find the files that a set is stored in: those of a directory or of a brace pattern, and of them those of a split."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from d4m_fast.errors import DataError
from d4m_fast.sources.class_search import any_class, list_folders, split_below
from d4m_fast.sources.entries import is_folder, is_run, list_entries
from d4m_fast.sources.splits import SPLIT_KINDS, named_split, split_of
from d4m_fast.wording import some

_BRACES = re.compile(r"\{([^{}]*)\}")
_SPAN = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
_MOST_FILES = 100_000  # that a pattern stands for


def is_pattern(data: str) -> bool:
    """Return whether a name is a pattern of braces or stars, and not a path that is there."""
    return (_BRACES.search(data) is not None or glob.has_magic(data)) and not os.path.lexists(data)


def files_of_pattern(pattern: str) -> list[Path]:
    """Return the files that a pattern stands for: `{000..146}`, `{a,b}`, and the stars of a shell.

    Raises:
        DataError: one is not there, or none is.
    """
    paths: list[Path] = []
    for name in _expand(pattern):
        if glob.has_magic(name):
            paths += map(Path, sorted(glob.glob(name)))
        else:
            paths.append(Path(name))
        if len(paths) > _MOST_FILES:
            raise DataError(f"{pattern}: stands for more than {_MOST_FILES:,} files; name fewer")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{pattern}: {len(missing):,} of {len(paths):,} files are not there ({some(missing)})")
    if not paths:
        raise DataError(f"{pattern}: no such files")
    if len(set(paths)) < len(paths):
        raise DataError(f"{pattern}: names a file twice; name each once")
    return paths


def _expand(pattern: str) -> Iterator[str]:
    """Yield what a pattern of braces stands for, the last brace changing fastest, as in a shell."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(match[1]):
        for ending in _expand(pattern[match.end() :]):
            yield pattern[: match.start()] + choice + ending


def _choices(text: str) -> Iterable[str]:
    span = _SPAN.fullmatch(text)
    if span is None:
        return text.split(",")
    first, last = int(span[1]), int(span[2])
    if abs(last - first) >= _MOST_FILES:
        raise DataError(f"{{{text}}}: stands for more than {_MOST_FILES:,} files; name fewer")
    width = max(len(span[1]), len(span[2])) if "0" in (span[1][0], span[2][0]) else 0
    step = 1 if last >= first else -1
    return (f"{number:0{width}d}" for number in range(first, last + step, step))


def shards_below(root: Path, suffix: str, split: str) -> list[Path] | None:
    """Return the files of a split with this suffix in a directory, in a split's folder, or in a sole folder below.

    Returns None where there are none, or where class folders of images are there, too, beside which archives may lie.

    Raises:
        DataError: there are such files, but none of the split.
    """
    names = list_folders(root)
    if (
        is_run(list_entries(str(root)))
        or any_class(root, names)
        or any(split_below(root, kind) for kind in SPLIT_KINDS)
    ):
        return None
    direct = _files_in(root, suffix)
    if direct:
        return of_split(direct, str(root), split)
    holders = [name for name in names if _files_in(root / name, suffix)]
    split_folders = {name: kind for name in holders if (kind := split_of(name)) is not None}
    if split_folders:
        kinds = SPLIT_KINDS[split]
        of_kind = sorted((kinds.index(kind), name) for name, kind in split_folders.items() if kind in kinds)
        if not of_kind:
            raise DataError(f"{root}: has {some(split_folders)}/ but no {' or '.join(kinds)}/ with {suffix} files")
        return _files_in(root / of_kind[0][1], suffix)
    return of_split(_files_in(root / holders[0], suffix), str(root), split) if len(holders) == 1 else None


def of_split(paths: Sequence[Path], container: str, split: str, *, named_by_user: bool = False) -> list[Path]:
    """Return those of some files that are of a split by their names; all of them where their names tell no splits.

    Args:
        named_by_user: the files were named one by one or by a pattern: those of one split alone are then what is meant.

    Raises:
        DataError: they are of other splits.
    """
    splits_by_path = {path: named_split(path.name.partition(".")[0]) for path in paths}
    kinds_and_stems = [kind_and_stem for kind_and_stem in splits_by_path.values() if kind_and_stem is not None]
    if len(kinds_and_stems) < len(paths) or len({stem for _, stem in kinds_and_stems}) > 1:
        return list(paths)
    if named_by_user and len({kind for kind, _ in kinds_and_stems}) == 1:
        return list(paths)
    kind_of = {path: kind_and_stem[0] for path, kind_and_stem in splits_by_path.items() if kind_and_stem is not None}
    for kind in SPLIT_KINDS[split]:
        of_kind = [path for path in paths if kind_of[path] == kind]
        if of_kind:
            return of_kind
    kinds = some(sorted(set(kind_of.values())))
    raise DataError(f"{container}: has files of {kinds} by their names, but none of {' or '.join(SPLIT_KINDS[split])}")


def _files_in(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a suffix in a folder, sorted by name; hidden ones are none."""
    names = [entry.name for entry in list_entries(str(folder)) if not is_folder(entry)]
    return [folder / name for name in sorted(names) if name.lower().endswith(suffix) and not name.startswith(".")]
