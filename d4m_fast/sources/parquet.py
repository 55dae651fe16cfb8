"""Images in parquet files as Hugging Face's `datasets` writes them: a column of files' bytes, and one of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from d4m_fast.errors import DataError
from d4m_fast.sources.class_folders import NamedFolders, are_nameless, folders_of_names, folders_of_numbers
from d4m_fast.sources.decode import MAX_BYTES, decode_bytes
from d4m_fast.sources.entries import require_plain_names
from d4m_fast.sources.image_names import wnid_names
from d4m_fast.sources.index_cache import IndexCache
from d4m_fast.sources.labels import Prompts, require_named
from d4m_fast.sources.listing import Listed, Listing, list_images
from d4m_fast.sources.parquet_files import ParquetFile, refusing
from d4m_fast.sources.parquet_rows import Rows, index_rows, rows_of
from d4m_fast.sources.parquet_schema import Columns, Features, columns_of, page_of
from d4m_fast.sources.records import Item
from d4m_fast.sources.shards import shards_below
from d4m_fast.sources.splits import SPLIT_KINDS

FORM = "parquet 1"


@dataclass(frozen=True, slots=True)
class ParquetSource(Listed):
    """Images in parquet files, in class order; an item's origin is the path it has in class folders.

    See `records.Source`.

    Attributes:
        sizes: (n,) int64 bytes of the rows' images; -1 where a row has none.
    """

    kind: str
    notes: tuple[str, ...]
    listing: Listing = field(repr=False)
    container: str
    rows: Rows = field(repr=False)
    sizes: np.ndarray = field(repr=False)

    def read(self, item: Item) -> Image.Image:
        row = self.listing.place_of(item)
        name, size = f"{self.container}/{item.origin}", int(self.sizes[row])
        if size < 0:
            raise DataError(f"{name}: row {row:,} has no bytes, only a name")
        if size > MAX_BYTES:
            raise DataError(f"{name}: {size:,} bytes, too many for an image (limit {MAX_BYTES:,})")
        return decode_bytes(self.rows.read(row), name)


def parquets_below(root: Path, split: str, prompts: Prompts, indexes: Path | None) -> ParquetSource | None:
    """Return the images in the parquet files of a directory; None where it has none, or class folders beside them.

    Of the files of a test and a validation split, the first are taken whose images have classes.
    """
    page, shards = page_of(root), []
    if page.patterns is not None:
        shards = [page.files(root, kind) for kind in SPLIT_KINDS[split]]
        if not any(shards) and any(page.files(root, kind) for kinds in SPLIT_KINDS.values() for kind in kinds):
            raise DataError(f"{root}: its README.md names no files for {' or '.join(SPLIT_KINDS[split])}")
    if not any(shards):
        paths = shards_below(root, ".parquet", split)
        shards = [] if paths is None else [paths]
    for paths in filter(None, shards):
        columns, labels, names = _read_texts(paths, page.features)
        if all(label.startswith("-") for label in labels) and paths is not shards[-1]:
            continue
        return _source(paths, columns, labels, names, str(root), prompts, indexes)
    return None


def open_parquets(paths: Sequence[Path], container: str, prompts: Prompts, indexes: Path | None) -> ParquetSource:
    """Return the images in some parquet files.

    Args:
        container: what messages call them.
        indexes: where indexes are kept, and copies of images that lie in no order of classes; None keeps none.

    Raises:
        DataError: a file is damaged, or has no columns of images and classes.
        PreflightError: pyarrow is missing, or a file cannot be read.
    """
    columns, labels, names = _read_texts(paths, page_of(paths[0].parent).features)
    return _source(paths, columns, labels, names, container, prompts, indexes)


def _source(
    paths: Sequence[Path],
    columns: Columns,
    labels: Sequence[str],
    names: Sequence[str],
    container: str,
    prompts: Prompts,
    indexes: Path | None,
) -> ParquetSource:
    folders, image_paths = _image_paths(labels, names, columns, container)
    if are_nameless(folders):
        require_named(container, {path.partition("/")[0] for path in image_paths}, prompts)
    cache = IndexCache(indexes, FORM)
    row_indexes = [index_rows(path, columns.data, cache) for path in paths]
    sizes = np.concatenate([index.sizes for index in row_indexes])
    if sizes.max(initial=-1) < 0:
        raise DataError(f"{container}: its images are not in it, only their names; save the set with its images")
    listing = list_images(container, image_paths, sizes, folders.names, prompts)
    rows, line = rows_of(row_indexes, columns.data, listing.places[sizes[listing.places] >= 0], cache)
    kind = f"{len(paths):,} parquet file{'s' * (len(paths) > 1)}, classes by column {columns.label}"
    notes = (*listing.notes, line) if line else listing.notes
    return ParquetSource(kind, notes, listing, container, rows, sizes)


def _read_texts(paths: Sequence[Path], features: Features) -> tuple[Columns, list[str], list[str]]:
    """Return the columns of files, the label of every row as text, and the name of its image; "" where it has none.

    Raises:
        DataError: the files have other columns, or a row has no label.
    """
    first = columns_of(ParquetFile(paths[0]).schema, str(paths[0]), features)
    texts = [column for column in (first.label, first.path) if column is not None]
    labels, names = list[str](), list[str]()
    for path in paths:
        file = ParquetFile(path)
        columns = columns_of(file.schema, str(path), features)
        if columns != first:
            raise DataError(f"{path}: has other columns or names of classes than {paths[0]}; give sets one by one")
        for batch in file.texts(texts):
            with refusing(path):  # text may be no UTF-8
                file_labels = batch.column(batch.schema.get_field_index(first.label)).to_pylist()
                file_names = _names_in(batch, first.path)
            if None in file_labels:
                raise DataError(
                    f"{path}: row {len(labels) + file_labels.index(None):,} has no {first.label}; remove it"
                )
            labels += map(str, file_labels)
            names += file_names
    if not labels:
        raise DataError(f"{paths[0]}: no rows")
    return first, labels, names


def _names_in(batch: Any, column: str | None) -> list[str]:
    if column is None:
        return [""] * batch.num_rows
    values = batch.column(batch.schema.get_field_index(column.partition(".")[0]))
    names = values.field(values.type.get_field_index("path")).to_pylist()
    return ["" if name is None else name for name in names]


def _image_paths(
    labels: Sequence[str], names: Sequence[str], columns: Columns, container: str
) -> tuple[NamedFolders, list[str]]:
    """Return the class folder of each label, and each image's path in class folders."""
    is_whole = all(label.removeprefix("-").isdecimal() for label in set(labels))
    bases = [name.rpartition("/")[2] for name in names]
    wnids = wnid_names(bases)
    if wnids is not None and wnids.agree_with(labels):
        folders = NamedFolders(dict(zip(labels, wnids.wnids, strict=True)), None)
        bases = wnids.names
    elif is_whole:
        folders = folders_of_numbers(container, set(labels), columns.names)
    else:
        folders = folders_of_names(labels)
    assert folders.by_label is not None
    paths = [f"{folders.by_label[label]}/{base}" for label, base in zip(labels, bases, strict=True)]
    require_plain_names(container, paths)
    if "" in bases or len(set(paths)) < len(paths):  # nothing tells images apart but their rows
        digits = len(str(len(labels) - 1))
        paths = [f"{folders.by_label[label]}/{row:0{digits}d}" for row, label in enumerate(labels)]
    return folders, paths
