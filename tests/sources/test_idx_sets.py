"""IDX directories are known by their files' checksums, and by nothing else."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from d4m_fast.errors import DataError
from d4m_fast.sources import arrays, idx, idx_sets
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.idx_sets import FASHION_MNIST


def write(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> Path:
    for name, array in zip(idx.FILES[split], (images, labels), strict=True):
        header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())
    return folder


@pytest.fixture(scope="module")
def fashion() -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST's whole test set, which the package has."""
    with np.load(str(arrays._archive())) as stored:
        return stored["test_images"], stored["test_labels"]


def test_the_published_files_have_their_names(tmp_path: Path, fashion: tuple[np.ndarray, np.ndarray]) -> None:
    source = open_source(str(write(tmp_path, "test", *fashion)), split="test")
    assert [info.prompt for info in source.classes] == list(FASHION_MNIST)


def test_published_files_that_were_packed_anew_have_their_names(
    tmp_path: Path, fashion: tuple[np.ndarray, np.ndarray]
) -> None:
    """Debian's package dataset-fashion-mnist holds the published arrays in gzip files of its own."""
    write(tmp_path, "test", *fashion)
    for name in idx.FILES["test"]:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes(), 1))
        (tmp_path / name).unlink()
    source = open_source(str(tmp_path), split="test")
    assert [info.prompt for info in source.classes] == list(FASHION_MNIST)


def test_a_changed_pixel_makes_it_another_set(tmp_path: Path, fashion: tuple[np.ndarray, np.ndarray]) -> None:
    images = fashion[0].copy()
    images[5000, 14, 14] ^= 1
    write(tmp_path, "test", images, fashion[1])
    with pytest.raises(DataError, match=r"10 classes \(labels 0 to 9\); give --prompts FILE with 10 lines"):
        open_source(str(tmp_path), split="test")


@pytest.mark.parametrize("same", [True, False])
def test_unpacked_files_are_known_by_the_packed_ones_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    labels = np.arange(20) % 10
    write(tmp_path, "test", np.zeros((20, 4, 4)), labels)
    sets = {}
    for name in idx.FILES["test"]:
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        sets[hashlib.md5(packed.read_bytes()).hexdigest()] = "KMNIST"
    monkeypatch.setattr(idx_sets, "_SETS", sets)
    if same:
        assert open_source(str(tmp_path), split="test").classes[0].prompt == "handwritten hiragana o"
        return
    write(tmp_path, "test", np.zeros((20, 4, 4)), labels[::-1])
    with pytest.raises(DataError, match="no set known by its checksums"):
        open_source(str(tmp_path), split="test")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["train-images-idx3-ubyte"], "train-images-idx3-ubyte without train-labels-idx1-ubyte; add it"),
        (["train-images-idx3-ubyte.gz"], "train-images-idx3-ubyte without train-labels-idx1-ubyte; add it"),
        (["raw/t10k-labels-idx1-ubyte"], "t10k-labels-idx1-ubyte without t10k-images-idx3-ubyte; add it"),
        (["EMNIST/raw/emnist-letters-train-images-idx3-ubyte"], "lie transposed"),
        (["QMNIST/raw/qmnist-train-images-idx3-ubyte"], "rows of integers"),
        (["raw/qmnist-test-labels-idx2-int"], "rows of integers"),
        (["k49-train-images-idx3-ubyte", "k49-train-labels-idx1-ubyte"], "rename it and its labels to"),
    ],
)
def test_files_that_are_no_pair_are_refused(tmp_path: Path, files: list[str], reason: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(DataError, match=reason):
        open_source(str(tmp_path))


def test_names_with_a_dot_as_kaggle_has_them(tmp_path: Path, fashion: tuple[np.ndarray, np.ndarray]) -> None:
    write(tmp_path, "test", *fashion)
    for name in idx.FILES["test"]:
        (tmp_path / name).rename(tmp_path / name.replace("-idx", ".idx"))
        (tmp_path / name).mkdir()  # and the file once more in a folder
    assert [info.prompt for info in open_source(str(tmp_path), split="test").classes] == list(FASHION_MNIST)


def test_splits_of_two_sets_are_refused(tmp_path: Path, fashion: tuple[np.ndarray, np.ndarray]) -> None:
    write(tmp_path, "test", *fashion)
    write(tmp_path, "train", fashion[0][:100], fashion[1][:100])
    with pytest.raises(DataError, match="test is Fashion-MNIST"):
        open_source(str(tmp_path), prompts_needed=False)


@pytest.mark.parametrize(("first", "count"), [(0, 47), (1, 26), (0, 2)])
def test_any_number_of_classes_with_as_many_prompts(tmp_path: Path, first: int, count: int) -> None:
    labels = np.arange(3 * count) % count + first
    data = str(write(tmp_path, "train", np.zeros((len(labels), 4, 4)), labels))
    file = tmp_path / "prompts"
    file.write_text("".join(f"thing {i}\n" for i in range(count)))
    source = open_source(data, prompts=str(file))
    assert [info.prompt for info in source.classes] == [f"thing {i}" for i in range(count)]
    assert [item.class_id for item in source.items[:count]] == list(range(count))
    file.write_text("one\n")
    with pytest.raises(DataError, match=f"1 prompts for {count} classes"):
        open_source(data, prompts=str(file))
