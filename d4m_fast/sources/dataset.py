"""Labelled sets of real images, whatever they are stored in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from d4m_fast.errors import DataError, UsageError
from d4m_fast.sources.arrays import arrays_below, bundled
from d4m_fast.sources.folders import folders_below
from d4m_fast.sources.labels import Prompts
from d4m_fast.sources.records import ClassInfo, Item, Source
from d4m_fast.sources.splits import SPLIT_KINDS
from d4m_fast.wording import some

BUNDLED = "bundled"
_NUMBER = re.compile("([0-9]{1,9})(?:-([0-9]{1,9}))?")


def open_source(
    data: str,
    *,
    split: str = "train",
    prompts: str | None = None,
    prompts_needed: bool = True,
    own: Sequence[Path] = (),
) -> Source:
    """The images of one split, in class order for folders and in file order for arrays.

    Args:
        data: "bundled", or a directory: class folders of images (itself, below a split's folder, or below `images/`),
            IDX files of MNIST's relatives, or CIFAR-10/100's python files; `docs/data.md` lists the layouts.
        split: "train" or "test".
        prompts: see `labels.resolve_prompts`.
        prompts_needed: False where the classes' prompts are not used: a set of unknown names is then opened, too.
        own: directories that d4m-fast writes to; they are never classes.

    Raises:
        UsageError: no such split, or `prompts` does not suit this kind of data.
        DataError: nothing usable there, a class that is empty or cannot be read, damaged array files, or classes whose
            names nobody knows.
    """
    if split not in SPLIT_KINDS:
        raise UsageError(f"split {split!r}: must be train or test")
    asked = Prompts(prompts, prompts_needed)
    if data == BUNDLED:
        return bundled(split, asked)
    if not data:  # Path("") is the current directory
        raise UsageError("--data '': names nothing; it takes 'bundled' or a directory of class folders")
    root = Path(data)
    if not root.is_dir():
        problem = "not a directory" if root.exists() else "no such directory"
        raise DataError(f"{data}: {problem}; --data takes 'bundled' or a directory of class folders")
    arrays = arrays_below(root, split, asked)
    return folders_below(root, split, asked, own) if arrays is None else arrays


def subset(source: Source, classes: str) -> Source:
    """The chosen classes of a source; ids and ranks stay those of the full set.

    Args:
        source: any source.
        classes: folder names, ids and ranges of ids, separated by commas: "0-9,17" or "n01440764,n01443537".

    Raises:
        UsageError: a name or id that the source does not have, or a number that is one class's id and another's folder.
    """
    chosen = {i for token in classes.split(",") for i in _ids(token.strip(), source.classes)}
    if len(chosen) == len(source.classes):
        return source
    return _Subset(
        classes=tuple(info for info in source.classes if info.id in chosen),
        items=tuple(item for item in source.items if item.class_id in chosen),
        fingerprint=hashlib.sha256(f"{source.fingerprint} {sorted(chosen)}".encode()).hexdigest(),
        parent=source,
    )


@dataclass(frozen=True, slots=True)
class _Subset:
    classes: tuple[ClassInfo, ...]
    items: tuple[Item, ...] = field(repr=False)
    fingerprint: str
    parent: Source

    @property
    def notes(self) -> Sequence[str]:
        return self.parent.notes

    def read(self, item: Item) -> Image.Image:
        return self.parent.read(item)


def _ids(token: str, classes: Sequence[ClassInfo]) -> Iterable[int]:
    """The class ids that one part of `--classes` stands for."""
    named = next((info.id for info in classes if info.folder == token), None)
    span = _span(token, {info.id for info in classes})
    if named is not None and span is not None and "-" not in token and span[0] != named:
        raise UsageError(
            f"--classes {token}: a folder of that name is class {named}; write {named}-{named} or {token}-{token}"
        )
    if named is not None:
        return [named]
    if span is None:
        known = some([info.folder for info in classes])
        raise UsageError(f"--classes: no class {token!r}; there are {known} (ids {classes[0].id} to {classes[-1].id})")
    return span


def _span(token: str, known: set[int]) -> range | None:
    match = _NUMBER.fullmatch(token)
    if match is None:
        return None
    first, last = int(match[1]), int(match[1] if match[2] is None else match[2])
    inside = first in known and last in known and first <= last and known.issuperset(range(first, last + 1))
    return range(first, last + 1) if inside else None
