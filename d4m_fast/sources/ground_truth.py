"""Lists of the classes of images that lie side by side: of ImageNet's validation images, and of Tiny-ImageNet's."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d4m_fast.errors import DataError
from d4m_fast.sources.class_names import WNID
from d4m_fast.sources.entries import read_at_most
from d4m_fast.sources.mat import mat_variables, read_mat
from d4m_fast.sources.tar_members import members_of

KAGGLE_LIST, TINY_LIST = "LOC_val_solution.csv", "val_annotations.txt"
DEVKIT = "ILSVRC2012_devkit_t12"
META = "meta.bin"  # which torchvision makes of the devkit
_IDS_FILE = "ILSVRC2012_validation_ground_truth.txt"
_MOST_BYTES = 1 << 28  # of a list or the devkit, once uncompressed; the devkit has 5 MB
_KAGGLE_ROW = re.compile(rf"(ILSVRC2012_val_[0-9]{{8}}),\"?({WNID.pattern})\b.*")
_TINY_ROW = re.compile(rf"([^\t/]+)\t({WNID.pattern})\b.*")


def classes_of_validation(*places: Path) -> Mapping[str, str] | None:
    """Return the WordNet id of each of ImageNet's validation images, by name without suffix; None where no list is.

    Args:
        places: folders in which a list is looked for: Kaggle's, the devkit unpacked or packed, or torchvision's
            `meta.bin`.

    Raises:
        DataError: a list is damaged.
    """
    for place in places:
        if (place / KAGGLE_LIST).is_file():
            return _from_table(place / KAGGLE_LIST, _KAGGLE_ROW, header=1)
        for folder in (place / DEVKIT / "data", place):
            if (folder / _IDS_FILE).is_file() and (folder / "meta.mat").is_file():
                ids = _text(folder / _IDS_FILE)
                return _from_devkit(ids, read_mat(folder / "meta.mat"), folder / _IDS_FILE)
        if (place / f"{DEVKIT}.tar.gz").is_file():
            return _from_packed_devkit(place / f"{DEVKIT}.tar.gz")
        if (place / META).is_file():
            return _from_meta(place / META)
    return None


def classes_of_tiny(path: Path) -> Mapping[str, str]:
    """Return the WordNet id of each image in Tiny-ImageNet's list, by name.

    Raises:
        DataError: it is damaged.
    """
    return _from_table(path, _TINY_ROW, header=0)


def _from_table(path: Path, row: re.Pattern[str], header: int) -> dict[str, str]:
    classes: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines()[header:], header + 1):
        match = row.fullmatch(line)
        if match is None or match[1] in classes:
            raise DataError(f"{path}: line {number} names no image and its class, or one again; fetch it again")
        classes[match[1]] = match[2]
    if not classes:
        raise DataError(f"{path}: names no images; fetch it again")
    return classes


def _from_packed_devkit(path: Path) -> dict[str, str]:
    with_gzip_header = 31  # zlib's number for it
    unpacking = zlib.decompressobj(with_gzip_header)
    try:
        data = unpacking.decompress(read_at_most(path, _MOST_BYTES), _MOST_BYTES)
    except zlib.error as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); fetch it again") from error
    if not unpacking.eof:
        raise DataError(f"{path}: cut short, or more than {_MOST_BYTES:,} bytes; fetch it again")
    contents = {}
    for member in members_of(lambda at, count: data[at : at + count], 0, len(data), str(path)):
        if member.name in (f"{DEVKIT}/data/{_IDS_FILE}", f"{DEVKIT}/data/meta.mat") and not member.kind:
            contents[member.name.rpartition("/")[2]] = data[member.offset : member.offset + member.size]
    if len(contents) < 2:
        raise DataError(f"{path}: holds no {_IDS_FILE} or no meta.mat; fetch it again")
    ids = contents[_IDS_FILE].decode("ascii", "replace")
    return _from_devkit(ids, mat_variables(contents["meta.mat"], path), path)


def _from_devkit(ids: str, meta: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the classes from the devkit's numbers and its table of these."""
    try:
        wnids = {int(synset["ILSVRC2012_ID"].item()): synset["WNID"] for synset in meta["synsets"]}
        listed = [wnids[int(text)] for text in ids.split()]
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: its numbers do not fit the devkit's meta.mat ({error}); fetch them again") from error
    return _numbered(listed, path)


def _from_meta(path: Path) -> dict[str, str]:
    """Return the classes from torchvision's `meta.bin`, a pickle, of which nothing but plain values is loaded."""
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of a protocol that torchvision does not write
            _, listed = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, LookupError) as error:
        raise DataError(f"{path}: not what torchvision writes ({type(error).__name__}); remove it") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not what torchvision writes, or no plain values; remove it") from error
    return _numbered(listed, path)


def _numbered(wnids: Any, path: Path) -> dict[str, str]:
    """Return a list of classes by the names of the validation images, which are numbered from 1."""
    if not isinstance(wnids, list) or not wnids:
        raise DataError(f"{path}: lists no classes; fetch it again")
    if not all(isinstance(wnid, str) and WNID.fullmatch(wnid) for wnid in wnids):
        raise DataError(f"{path}: lists what is no WordNet id; fetch it again")
    return {f"ILSVRC2012_val_{number:08d}": wnid for number, wnid in enumerate(wnids, 1)}


def _text(path: Path) -> str:
    return read_at_most(path, _MOST_BYTES).decode("utf-8", "replace")
