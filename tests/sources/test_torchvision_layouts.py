"""What torchvision's own classes download and unpack, compared with these classes on the same files."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from containers import tar_bytes, write_tar
from PIL import Image

from d4m_fast.errors import DataError
from d4m_fast.sources import mat
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.ground_truth import classes_of_validation
from d4m_fast.sources.records import Source

datasets = pytest.importorskip("torchvision.datasets")
WNIDS = ("n02119789", "n01440764", "n01443537")  # in the order of the devkit's numbers, which is not that of the ids


@pytest.fixture(autouse=True)
def _no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are made up, so torchvision must not compare them with the published MD5s."""
    from torchvision.datasets import imagenet, utils

    present = lambda path, md5=None: os.path.isfile(path)  # noqa: E731
    monkeypatch.setattr(imagenet, "check_integrity", present)
    monkeypatch.setattr(utils, "check_integrity", present)
    for kind in (datasets.SVHN, datasets.STL10):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def same_images(source: Source, theirs: Any) -> None:
    """All of torchvision's images with their classes, in any order; ours have the class's name from theirs."""
    ours = sorted((item.class_id, source.read(item).tobytes()) for item in source.items)
    assert ours == sorted((label, image.tobytes()) for image, label in theirs)


@pytest.mark.parametrize("compressed", [False, True])
def test_svhn(tmp_path: Path, compressed: bool) -> None:
    scipy = pytest.importorskip("scipy.io")
    for split, count in (("train", 30), ("test", 20)):
        images = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        scipy.savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": labels}, do_compression=compressed)
    for split in ("train", "test"):
        source = open_source(str(tmp_path), split=split)
        same_images(source, datasets.SVHN(tmp_path, split))
        assert [info.prompt for info in source.classes][:2] == ["house number zero", "house number one"]
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"no test_32x32\.mat for the test split"):
        open_source(str(tmp_path), split="test")


def test_stl10(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")
    (folder / "fold_indices.txt").write_text("0\n" * 10)
    for split, count in (("train", 20), ("test", 10)):
        np.random.default_rng(count).integers(0, 256, (count, 3, 96, 96), np.uint8).tofile(folder / f"{split}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    for place in (tmp_path, folder):
        for split in ("train", "test"):
            source = open_source(str(place), split=split)
            same_images(source, datasets.STL10(tmp_path, split))
            assert [info.prompt for info in source.classes] == names
    with (folder / "train_X.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match="1,000 bytes of images for 20 labels"):
        open_source(str(tmp_path))


def test_food101(tmp_path: Path) -> None:
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for number, folder in enumerate(("waffles", "apple_pie")):
        for i in range(4):
            path = tmp_path / "food-101" / "images" / folder / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(10 * number + i))
            lists["train" if i < 3 else "test"].setdefault(folder, []).append(f"{folder}/{i}")
    (tmp_path / "food-101" / "meta").mkdir()
    for split, by_class in lists.items():
        (tmp_path / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(by_class))
        lines = [line for names in by_class.values() for line in names]
        (tmp_path / "food-101" / "meta" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    for place in (tmp_path, tmp_path / "food-101"):
        for split in ("train", "test"):
            same_images(open_source(str(place), split=split), datasets.Food101(tmp_path, split))


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """ImageNet's three archives, of three classes."""
    scipy = pytest.importorskip("scipy.io")
    root = tmp_path / "archives"
    train = []
    for number, wnid in enumerate(sorted(WNIDS)):
        train.append((f"{wnid}.tar", tar_bytes([(f"{wnid}_{i}.JPEG", jpeg(10 * number + i)) for i in range(3)])))
    write_tar(root / "ILSVRC2012_img_train.tar", train)
    ids = (2, 3, 1, 2)
    write_tar(root / "ILSVRC2012_img_val.tar", [(f"ILSVRC2012_val_{i:08d}.JPEG", jpeg(50 + i)) for i in range(1, 5)])
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    rows = [
        (i + 1, wnid, f"name of {wnid}, second name", "gloss", 0, np.zeros((1, 0)), 0) for i, wnid in enumerate(WNIDS)
    ]
    rows.append((1001, "n00001740", "entity", "gloss", 3, np.array([[1, 2, 3]]), 5))
    synsets = np.array(rows, dtype=[(field, object) for field in fields])[:, None]
    stream = io.BytesIO()
    scipy.savemat(stream, {"synsets": synsets}, do_compression=True)
    folder = "ILSVRC2012_devkit_t12"
    truth = "".join(f"{i}\n" for i in ids).encode()
    devkit = tar_bytes(
        [
            (f"{folder}/readme.txt", b"x"),
            (f"{folder}/data/meta.mat", stream.getvalue()),
            (f"{folder}/data/ILSVRC2012_validation_ground_truth.txt", truth),
        ]
    )
    (root / f"{folder}.tar.gz").write_bytes(gzip.compress(devkit))
    return root


def test_imagenet_packed_and_as_torchvision_unpacks_it(tmp_path: Path, archives: Path) -> None:
    root = shutil.copytree(archives, tmp_path / "torchvision")
    for split, theirs in (("train", "train"), ("test", "val")):
        reference = datasets.ImageNet(root, theirs)
        packed, unpacked = open_source(str(archives), split=split), open_source(str(root), split=split)
        same_images(packed, reference)
        same_images(unpacked, reference)
        assert [info.folder for info in packed.classes] == reference.wnids
        assert (packed.classes, list(packed.items), packed.fingerprint) == (
            unpacked.classes,
            list(unpacked.items),
            unpacked.fingerprint,
        )


@pytest.mark.parametrize("by", ["devkit", "packed devkit", "meta.bin"])
def test_validation_images_side_by_side(tmp_path: Path, archives: Path, by: str) -> None:
    import tarfile

    reference = open_source(str(archives), split="test")
    flat = tmp_path / "set" / "val"
    with tarfile.open(archives / "ILSVRC2012_img_val.tar") as tar:
        tar.extractall(flat, filter="data")
    with pytest.raises(DataError, match="validation images without their classes; put Kaggle's"):
        open_source(str(flat))
    if by == "meta.bin":
        datasets.ImageNet(archives, "val")
        shutil.copy(archives / "meta.bin", flat.parent)
    elif by == "devkit":
        with tarfile.open(archives / "ILSVRC2012_devkit_t12.tar.gz") as tar:
            tar.extractall(flat.parent, filter="data")
    else:
        shutil.copy(archives / "ILSVRC2012_devkit_t12.tar.gz", flat)
    for place, split in ((flat, "train"), (flat.parent, "test")):
        source = open_source(str(place), split=split)
        assert (source.classes, list(source.items)) == (reference.classes, list(reference.items))
        assert source.fingerprint == reference.fingerprint
        assert [source.read(item).tobytes() for item in source.items] == [
            reference.read(item).tobytes() for item in reference.items
        ]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/d4m-fast-was-here",)


@pytest.mark.parametrize("value", [_Evil(), ({}, [_Evil()]), ({}, [5]), ({}, []), ({}, ["../../x"]), [1, 2, 3], "x"])
def test_a_meta_bin_of_other_things_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "meta.bin")
    with pytest.raises(DataError, match=r"meta\.bin: "):
        classes_of_validation(tmp_path)
    (tmp_path / "meta.bin").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=r"meta\.bin: "):
        classes_of_validation(tmp_path)
    assert not os.path.exists("/tmp/d4m-fast-was-here")


@pytest.mark.parametrize("data", [b"", b"x", gzip.compress(b"x"), gzip.compress(tar_bytes([("a", b"b")]))[:-9]])
def test_a_damaged_devkit_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz: "):
        classes_of_validation(tmp_path)


def test_a_devkit_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d4m_fast.sources.ground_truth._MOST_BYTES", 1 << 20)
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(DataError, match="or more than 1,048,576 bytes"):
        classes_of_validation(tmp_path)


def test_mat_files_are_read_as_scipy_reads_them(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        kind: rng.integers(0, 100, (2, 3, 4)).astype(kind)
        for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
    }
    for compressed in (False, True):
        scipy.savemat(
            tmp_path / "a.mat", {**{f"v_{k}": v for k, v in arrays.items()}, "s": "tëxt"}, do_compression=compressed
        )
        variables = mat.read_mat(tmp_path / "a.mat")
        for name, array in arrays.items():
            assert variables[f"v_{name}"].dtype == array.dtype
            assert np.array_equal(variables[f"v_{name}"], array)
        assert variables["s"] == "tëxt"


def test_changed_mat_files_end_in_values_or_one_line(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    path, rng = tmp_path / "a.mat", np.random.default_rng(0)
    synsets = np.array([(1, "n01440764")], dtype=[("ILSVRC2012_ID", object), ("WNID", object)])[:, None]
    scipy.savemat(path, {"x": np.zeros((3, 4), np.uint8), "synsets": synsets})
    whole = path.read_bytes()
    for _ in range(5000):
        data = bytearray(whole)
        for place in rng.integers(120, len(data), rng.integers(1, 5)).tolist():
            data[place] = int(rng.choice([0, 1, 2, 14, 15, 16, 127, 128, 255, int(rng.integers(256))]))
        try:
            mat.mat_variables(bytes(data[: rng.integers(1, len(data))] if rng.integers(6) == 0 else data), path)
        except DataError as error:
            assert "\n" not in str(error)


def test_a_mat_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy = pytest.importorskip("scipy.io")
    monkeypatch.setattr(mat, "MOST_BYTES", 1 << 20)
    scipy.savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 5000), np.uint8)}, do_compression=True)
    with pytest.raises(DataError, match="a variable of more than 1,048,576 bytes"):
        open_source(str(tmp_path))
