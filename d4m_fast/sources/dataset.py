"""Open labelled sets of real images, whatever they are stored in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from d4m_fast.errors import DataError, UsageError
from d4m_fast.sources.arrays import arrays_below, bundled
from d4m_fast.sources.entries import require_real_folder, unpacked_name
from d4m_fast.sources.folders import folders_below
from d4m_fast.sources.labels import Prompts
from d4m_fast.sources.listed import listed_below
from d4m_fast.sources.parquet import open_parquets, parquets_below
from d4m_fast.sources.records import ClassInfo, Item, Source
from d4m_fast.sources.shards import files_of_pattern, is_pattern, of_split, shards_below
from d4m_fast.sources.small_sets import stl10_below, svhn_below
from d4m_fast.sources.splits import SPLIT_KINDS
from d4m_fast.sources.tars import open_tars
from d4m_fast.wording import some

BUNDLED = "bundled"
_TAKEN = "'bundled', a directory of class folders, tars or parquet files, or one of these files"
_SPAN = re.compile("([0-9]{1,9})(?:-([0-9]{1,9}))?")


def open_source(
    data: str,
    *,
    split: str = "train",
    prompts: str | None = None,
    prompts_needed: bool = True,
    own: Sequence[Path] = (),
    indexes: Path | None = None,
) -> Source:
    """Return the images of one split, in file order for arrays and in class order for all else.

    Args:
        data: "bundled"; a directory of class folders (itself, below a split's folder, or below `images/`), of tars, of
            parquet files, or as torchvision and Kaggle have theirs; a tar, a parquet file, or a pattern of these.
            `docs/data.md` lists the layouts.
        split: "train" or "test".
        prompts: see `labels.resolve_prompts`.
        prompts_needed: False where the classes' prompts are not used: a set of unknown names is then opened, too.
        own: directories that d4m-fast writes to; they are never classes.
        indexes: where indexes of tars and parquet files are kept for the next time; None keeps none.

    Raises:
        UsageError: no such split, or `prompts` does not suit this kind of data.
        DataError: nothing usable there, a class that is empty or cannot be read, damaged array files, or classes whose
            names nobody knows.
    """
    if split not in SPLIT_KINDS:
        raise UsageError(f"split {split!r}: must be train or test")
    requested_prompts = Prompts(prompts, prompts_needed)
    if data == BUNDLED:
        return bundled(split, requested_prompts)
    if not data:  # Path("") is the current directory
        raise UsageError(f"--data '': names nothing; it takes {_TAKEN}")
    if is_pattern(data):
        return _open_files(files_of_pattern(data), data, split, requested_prompts, indexes)
    root = Path(data)
    if root.is_file():
        return _open_files([root], data, split, requested_prompts, indexes)
    if not root.is_dir():
        problem = "no file of images" if root.exists() else "no such directory or file"
        raise DataError(f"{data}: {problem}; --data takes {_TAKEN}")
    return _open_directory(root, split, requested_prompts, own, indexes)


def _open_files(paths: Sequence[Path], data: str, split: str, prompts: Prompts, indexes: Path | None) -> Source:
    """Return the images in files that were named."""
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes == {".tar"}:
        return open_tars(of_split(paths, data, split, named_by_user=True), data, split, prompts, indexes)
    if suffixes == {".parquet"}:
        return open_parquets(of_split(paths, data, split, named_by_user=True), data, prompts, indexes)
    if len(suffixes) > 1:
        raise DataError(f"{data}: files of several kinds ({some(sorted(suffixes))}); give sets one by one")
    packed = next((path for path in paths if unpacked_name(path.name) is not None), None)
    if packed is not None:
        raise DataError(f"{packed}: is packed, so no image in it can be found; unpack it to a tar, or to class folders")
    raise DataError(f"{data}: not a directory, a .tar or a .parquet; --data takes {_TAKEN}")


def _open_directory(root: Path, split: str, prompts: Prompts, own: Sequence[Path], indexes: Path | None) -> Source:
    require_real_folder(str(root))
    for open_arrays in (arrays_below, svhn_below, stl10_below):
        arrays = open_arrays(root, split, prompts)
        if arrays is not None:
            return arrays
    listed = listed_below(root, split, prompts, own, indexes)
    if listed is not None:
        return listed
    parquets = parquets_below(root, split, prompts, indexes)
    if parquets is not None:
        return parquets
    tars = shards_below(root, ".tar", split)
    if tars is not None:
        return open_tars(tars, str(root), split, prompts, indexes)
    return folders_below(root, split, prompts, own)


def subset(source: Source, classes: str) -> Source:
    """Return a source with some classes of another; ids and ranks stay those of the full set.

    Args:
        source: any source.
        classes: folder names, ids and ranges of ids, separated by commas: "0-9,17" or "n01440764,n01443537".

    Raises:
        UsageError: a name or id that the source does not have, or a number that is one class's id and another's folder.
    """
    ids = set[int]()
    for token in classes.split(","):
        ids.update(_ids_of_token(token.strip(), source.classes))
    return with_classes(source, ids)


def with_classes(source: Source, ids: Collection[int]) -> Source:
    """Return a source with the classes of these ids, which stay those of the full set."""
    if len(ids) == len(source.classes):
        return source
    return _Subset(
        classes=tuple(class_info for class_info in source.classes if class_info.id in ids),
        items=tuple(item for item in source.items if item.class_id in ids),
        fingerprint=hashlib.sha256(f"{source.fingerprint} {sorted(ids)}".encode()).hexdigest(),
        parent=source,
    )


def with_items(source: Source, items: Sequence[Item]) -> Source:
    """Return a source with some items of another, in this order; one may be there twice."""
    names = [(item.class_id, item.rank) for item in items]
    digest = hashlib.sha256(f"{source.fingerprint} {names}".encode()).hexdigest()
    return _Subset(tuple(source.classes), tuple(items), digest, source)


@dataclass(frozen=True, slots=True)
class _Subset:
    classes: tuple[ClassInfo, ...]
    items: tuple[Item, ...] = field(repr=False)
    fingerprint: str
    parent: Source

    @property
    def kind(self) -> str:
        return self.parent.kind

    @property
    def notes(self) -> Sequence[str]:
        return self.parent.notes

    def read(self, item: Item) -> Image.Image:
        return self.parent.read(item)


def _ids_of_token(token: str, classes: Sequence[ClassInfo]) -> Iterable[int]:
    """Return the class ids that one part of `--classes` stands for."""
    ids = {class_info.folder: class_info.id for class_info in classes}
    folder_id = ids.get(token)
    span = _span(token, set(ids.values()))
    if folder_id is not None and span is not None and "-" not in token and span[0] != folder_id:
        raise UsageError(
            f"--classes {token}: a folder of that name is class {folder_id}; write {folder_id}-{folder_id} or"
            f" {token}-{token}"
        )
    if folder_id is not None:
        return [folder_id]
    if span is None:
        ends = f"ids {classes[0].id} to {classes[-1].id}"
        raise UsageError(f"--classes: no class {token!r}; there are {some(ids)} ({ends})")
    return span


def _span(token: str, ids: set[int]) -> range | None:
    """Return the ids from a number or a range of numbers; None where the token is neither, or one is no class."""
    match = _SPAN.fullmatch(token)
    if match is None:
        return None
    first, last = int(match[1]), int(match[1] if match[2] is None else match[2])
    # The ends are looked up first, so that a range of billions is refused without being walked through.
    is_inside = first in ids and last in ids and first <= last and ids.issuperset(range(first, last + 1))
    return range(first, last + 1) if is_inside else None
