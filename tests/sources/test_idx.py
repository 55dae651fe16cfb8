import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from d4m_fast.errors import DataError
from d4m_fast.sources import idx


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_read_gives_back_the_array(tmp_path: Path, suffix: str) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    assert np.array_equal(idx.read(path), array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01....", "not an IDX file of bytes but of floats; save it as bytes"),
        (b"\0\0\x07\x01\0\0\0\x01....", "not an IDX file"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends inside its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "3 values where its header says 5"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "more values where its header says 2"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "its header asks for"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        idx.read(path)


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(idx_bytes(np.zeros(9, np.uint8)))[:-9]], ids=["none", "cut off"]
)
def test_damaged_gzip_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        idx.read(path)


@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
def test_find_takes_plain_or_gzipped_files_where_torchvision_puts_them(tmp_path: Path, below: str) -> None:
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = (folder / name for name in idx.FILES["test"])
    images.with_name(f"{images.name}.gz").touch()
    labels.touch()
    assert idx.find(tmp_path, "test") == (images.with_name(f"{images.name}.gz"), labels)
    assert idx.find(tmp_path, "train") is None


def test_find_is_not_satisfied_by_two_copies_of_the_images(tmp_path: Path) -> None:
    images = tmp_path / idx.FILES["train"][0]
    images.touch()
    images.with_name(f"{images.name}.gz").touch()
    assert idx.find(tmp_path, "train") is None
