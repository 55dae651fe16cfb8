"""Images in tar files, read in place: WebDataset's shards, tars of class folders, and tars of tars as ImageNet's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from d4m_fast.errors import DataError
from d4m_fast.sources import left_out
from d4m_fast.sources.class_folders import names_beside
from d4m_fast.sources.decode import MAX_BYTES, decode_bytes
from d4m_fast.sources.index_cache import IndexCache
from d4m_fast.sources.labels import Prompts, require_named
from d4m_fast.sources.listing import Listed, Listing, list_images
from d4m_fast.sources.positioned import PositionedFiles
from d4m_fast.sources.records import Item
from d4m_fast.sources.samples import samples_by_list, samples_of
from d4m_fast.sources.tar_index import FORM, TarIndex, index_of


@dataclass(frozen=True, slots=True)
class TarSource(Listed):
    """Images in tars, in class order; an item's origin is its path below the class folders. See `records.Source`.

    Attributes:
        numbers: (n,) of the file that each place is in.
        offsets, sizes: (n,) int64, of the places' bytes.
    """

    kind: str
    notes: tuple[str, ...]
    listing: Listing = field(repr=False)
    archives: PositionedFiles = field(repr=False)
    numbers: np.ndarray = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)

    def read(self, item: Item) -> Image.Image:
        place = self.listing.place_of(item)
        number, size = int(self.numbers[place]), int(self.sizes[place])
        name = f"{self.archives.paths[number]}/{item.origin}"
        if size > MAX_BYTES:
            raise DataError(f"{name}: {size:,} bytes, too many for an image (limit {MAX_BYTES:,})")
        return decode_bytes(self.archives.read(number, int(self.offsets[place]), size), name)


def open_tars(
    paths: Sequence[Path],
    container: str,
    split: str,
    prompts: Prompts,
    root: Path | None,
    class_of: Mapping[str, str] | None = None,
) -> TarSource:
    """Return the images in some tars.

    Args:
        container: what messages call them.
        root: where indexes are kept; None keeps none.
        class_of: the class folder of each image by its name, from a list; None where the tars tell it.

    Raises:
        DataError: a tar is compressed, damaged or unsafe, or nothing tells the classes.
        DamageError: an index that is kept is not what was written.
        PreflightError: a tar cannot be read, or an index cannot be written.
    """
    cache = IndexCache(root, FORM)
    indexes = [index_of(path, cache) for path in paths]
    sections = list(chain.from_iterable(index.sections for index in indexes))
    if class_of is None:
        samples = samples_of(sections, container, split, names_beside(paths[0].parent))
    else:
        samples = samples_by_list(sections, container, class_of)
    if samples.nameless:
        require_named(container, {path.partition("/")[0] for path in samples.paths}, prompts)
    counts = [sum(len(section.names) for section in index.sections) for index in indexes]
    numbers = np.repeat(np.arange(len(paths), dtype=np.int32), counts)[samples.places]
    offsets = np.concatenate([section.offsets for section in sections])[samples.places]
    sizes = np.concatenate([section.sizes for section in sections])[samples.places]
    listing = list_images(container, samples.paths, sizes, samples.names, prompts)
    return TarSource(
        kind=f"{_kind(indexes)}, classes by {samples.by}",
        notes=(*listing.notes, *_notes(indexes)),
        listing=listing,
        archives=PositionedFiles(paths, [index.state for index in indexes]),
        numbers=numbers,
        offsets=offsets,
        sizes=sizes,
    )


def _kind(indexes: Sequence[TarIndex]) -> str:
    inner = sum(len(index.sections) for index in indexes)
    if inner > len(indexes):
        return f"a tar of {inner:,} tars" if len(indexes) == 1 else f"{len(indexes):,} tars of {inner:,} tars"
    if any(section.labels for index in indexes for section in index.sections):
        return f"{len(indexes):,} WebDataset shard{'s' * (len(indexes) > 1)}"
    return "a tar" if len(indexes) == 1 else f"{len(indexes):,} tars"


def _notes(indexes: Sequence[TarIndex]) -> list[str]:
    counts, skipped_folders = Counter[str](), set[str]()
    for index in indexes:
        counts += index.left_out
        skipped_folders |= index.skipped_folders
    return left_out.lines_of(counts, skipped_folders)
