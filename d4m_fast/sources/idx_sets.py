"""IDX data sets that are known by the checksums of their files, and what their classes are called.

The MD5s of the packed files are those that torchvision publishes; those of the unpacked ones were compared with several
independent listings, Fashion-MNIST's test set with the images in this package.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

FASHION_MNIST = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_KMNIST = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "MNIST": tuple(f"handwritten digit {name}" for name in DIGITS),
        "Fashion-MNIST": FASHION_MNIST,
        "KMNIST": tuple(f"handwritten hiragana {name}" for name in _KMNIST),
    }
)
_SETS: Mapping[str, str] = MappingProxyType(
    {
        "f68b3c2dcbeaaa9fbdd348bbdeb94873": "MNIST",
        "d53e105ee54ea40749a09fcbcd1e9432": "MNIST",
        "9fb629c4189551a2d022fa330f9573f3": "MNIST",
        "ec29112dd5afa0611ce80d1b7f02629c": "MNIST",
        "6bbc9ace898e44ae57da46a324031adb": "MNIST",
        "a25bea736e30d166cdddb491f175f624": "MNIST",
        "2646ac647ad5339dbf082846283269ea": "MNIST",
        "27ae3e4e09519cfbb04c329615203637": "MNIST",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d": "Fashion-MNIST",
        "25c81989df183df01b3e8a0aad5dffbe": "Fashion-MNIST",
        "bef4ecab320f06d8554ea6380940ec79": "Fashion-MNIST",
        "bb300cfdad3c16e7a12a480ee83cd310": "Fashion-MNIST",
        "f4a8712d7a061bf5bd6d2ca38dc4d50a": "Fashion-MNIST",
        "9018921c3c673c538a1fc5bad174d6f9": "Fashion-MNIST",
        "8181f5470baa50b63fa0f6fddb340f0a": "Fashion-MNIST",
        "15d484375f8d13e6eb1aabb0c3f46965": "Fashion-MNIST",
        "bdb82020997e1d708af4cf47b453dcf7": "KMNIST",
        "e144d726b3acfaa3e44228e80efcd344": "KMNIST",
        "5c965bf0a639b31b8f53240b1b52f4d7": "KMNIST",
        "7320c461ea6c1c855c0b718fb2a4b134": "KMNIST",
    }
)


def known_set(*files: Path) -> str | None:
    """Return the published data set that all of these files belong to; None if one is of no known set, or of another.

    Raises:
        OSError: a file cannot be read.
    """
    names = set(map(_set_of, files))
    return names.pop() if len(names) == 1 else None


def _set_of(file: Path) -> str | None:
    """Return the set of a file: known by itself, by what is packed in it, or by what it was unpacked from."""
    digest = _md5(file)
    packed = file.with_name(f"{file.name}.gz")
    if digest not in _SETS and file.suffix == ".gz":  # packed anew, as Debian's package of Fashion-MNIST is
        return _SETS.get(_md5(file, gzip.open))
    if digest in _SETS or not packed.is_file():
        return _SETS.get(digest)
    name = _SETS.get(_md5(packed))
    return name if name is not None and _md5(packed, gzip.open) == digest else None


def _md5(file: Path, opener: Callable[[Path, str], Any] = open) -> str:
    with opener(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
