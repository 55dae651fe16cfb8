"""The IDX files of MNIST and Fashion-MNIST, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from d4m_fast.errors import DataError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_TORCHVISION_FOLDERS = ("MNIST", "FashionMNIST", "KMNIST")
_OTHER_FOLDERS = ("EMNIST", "QMNIST")  # whose files have other names
_IDX_NAME = re.compile(r".*[-.]idx[123]-(?:ubyte|int)(?:\.gz)?")
_TYPES = {0x09: "signed bytes", 0x0B: "short integers", 0x0C: "integers", 0x0D: "floats", 0x0E: "doubles"}
MAX_BYTES = 1 << 30  # a damaged header must not ask for all memory; the largest real file has 47 MB


def find(directory: Path, split: str) -> tuple[Path, Path] | None:
    """Return the (images, labels) files of a split, in `directory` or where torchvision puts them below it.

    Raises:
        DataError: torchvision put several sets below it.
    """
    below = [directory / name / "raw" for name in _TORCHVISION_FOLDERS]
    for folders in ([directory], [directory / "raw"], below):
        pairs = []
        for folder in folders:
            images, labels = (_variant(folder, stem) for stem in FILES[split])
            if images is not None and labels is not None:
                pairs.append((images, labels))
        if len(pairs) > 1:
            places = " and ".join(str(images.parent) for images, _ in pairs)
            raise DataError(f"{directory}: holds several sets; give one of {places}")
        if pairs:
            return pairs[0]
    return None


def refuse_others(directory: Path, split: str) -> None:
    """Refuse IDX files that are not the pairs that `find` finds, rather than look for class folders beside them.

    Raises:
        DataError: there are some.
    """
    below = [directory / name / "raw" for name in (*_TORCHVISION_FOLDERS, *_OTHER_FOLDERS)]
    for folder in (directory, directory / "raw", *below):
        names = []
        for path in sorted(folder.glob("*idx*")):
            if _IDX_NAME.fullmatch(path.name) and path.is_file():
                names.append(path.name)
        if names:
            raise DataError(f"{folder}: {_problem(folder, names, split)}")


def _problem(folder: Path, names: Sequence[str], split: str) -> str:
    """Say, of IDX files that are no pair, what is the matter and what to do."""
    for stems in FILES.values():
        present = [stem for stem in stems if _variant(folder, stem) is not None]
        if len(present) == 1:
            missing = next(stem for stem in stems if stem not in present)
            return f"{present[0]} without {missing}; add it"
    emnist = next((name for name in names if name.startswith("emnist-")), None)
    if emnist is not None:
        return f"{emnist}: EMNIST's images lie transposed in its files; turn them and save them as class folders"
    qmnist = next((name for name in names if name.startswith("qmnist-")), None)
    if qmnist is not None:
        return f"{qmnist}: QMNIST's labels are rows of integers, which are not read; save the images as class folders"
    return f"{names[0]} is not the name of a split's images; rename it and its labels to {' and '.join(FILES[split])}"


def read(path: Path) -> np.ndarray:
    """Return a file's read-only array of unsigned bytes: (N,) labels or (N, H, W) images.

    Raises:
        DataError: the file is damaged, or holds something else than bytes.
    """
    try:
        with cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as stream:
            return _parse(stream, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from error


def _variant(folder: Path, stem: str) -> Path | None:
    dotted = stem.replace("-idx", ".idx")  # as Kaggle has them
    names = (stem, dotted, f"{stem}.gz", f"{dotted}.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _parse(stream: BinaryIO, path: Path) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in _TYPES:
        raise DataError(f"{path}: not an IDX file of bytes but of {_TYPES[magic[2]]}; save it as bytes")
    if len(magic) < 4 or magic[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of bytes; fetch it again")
    sizes = stream.read(4 * magic[3])
    if len(sizes) != 4 * magic[3]:
        raise DataError(f"{path}: ends inside its header; fetch it again")
    shape = np.frombuffer(sizes, ">u4").tolist()
    count = math.prod(shape)
    if count > MAX_BYTES:
        raise DataError(f"{path}: its header asks for {count:,} bytes; fetch it again")
    values = stream.read(count + 1)  # one more than there are, to notice a file that goes on
    if len(values) != count:
        actual_count = f"{len(values):,}" if len(values) < count else "more"
        raise DataError(f"{path}: {actual_count} values where its header says {count:,}; fetch it again")
    return np.frombuffer(values, np.uint8).reshape(shape)
