"""The same images in every container: the same classes, ids, ranks, fingerprint and pixels as in class folders."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from containers import CONTAINERS, File, files_below, write_tar
from driving import CLASSES, write_photos
from image_variants import variants

from d4m_fast.errors import DataError
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.decode import decode, decode_bytes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders whose images have one name each, as WebDataset's keys need."""
    root = write_photos(tmp_path_factory.mktemp("folders") / "photos", CLASSES, 6)
    for path in list(root.rglob("*.*")):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    return root


@pytest.fixture(scope="module")
def files(folders: Path) -> list[File]:
    return files_below(folders)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_container_is_the_same_set_as_class_folders(
    tmp_path: Path, folders: Path, files: list[File], container: str
) -> None:
    place, reference = CONTAINERS[container](tmp_path, files), open_source(str(folders))
    for _ in range(2):  # the second time by the index
        source = open_source(str(place), indexes=tmp_path / "art" / "indexes")
        assert source.classes == reference.classes
        assert list(source.items) == list(reference.items)
        assert source.fingerprint == reference.fingerprint
        for item in source.items:
            assert source.read(item).tobytes() == reference.read(item).tobytes(), item


@pytest.mark.parametrize("container", CONTAINERS)
def test_many_threads_and_a_copy_in_another_process_read_the_same(
    tmp_path: Path, files: list[File], container: str
) -> None:
    source = open_source(str(CONTAINERS[container](tmp_path, files)))
    alone = [source.read(item).tobytes() for item in source.items]
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).integers(0, len(alone), 200).tolist()
    with ThreadPoolExecutor(8) as threads:
        for one in (source, copy):
            together = threads.map(one.read, [one.items[row] for row in order])
            assert [image.tobytes() for image in together] == [alone[row] for row in order]


@pytest.mark.parametrize("container", CONTAINERS)
def test_another_image_is_another_set(tmp_path: Path, folders: Path, files: list[File], container: str) -> None:
    changed = [(files[0][0], files[0][1] + b"more"), *files[1:]]
    source = open_source(str(CONTAINERS[container](tmp_path, changed)))
    assert source.fingerprint != open_source(str(folders)).fingerprint


def test_bytes_are_decoded_as_files_are(tmp_path: Path) -> None:
    """Every variant of docs/images.md, and each cut in the middle."""
    for name, variant in variants().items():
        for data in (variant.data, variant.data[: len(variant.data) // 2]):
            path = tmp_path / "image"
            path.write_bytes(data)
            try:
                expected = decode(path)
            except DataError as refusal:
                with pytest.raises(DataError) as same:
                    decode_bytes(data, str(path))
                assert str(same.value) == str(refusal), name
            else:
                image = decode_bytes(data, str(path))
                assert (image.size, image.info) == (expected.size, expected.info), name
                assert image.tobytes() == expected.tobytes(), name


def test_a_damaged_image_is_named_with_its_container(tmp_path: Path, files: list[File]) -> None:
    path = write_tar(tmp_path / "photos.tar", [*files, ("apple/cut.jpg", files[1][1][:50])])
    source = open_source(str(path))
    item = next(item for item in source.items if item.origin == "apple/cut.jpg")
    with pytest.raises(DataError, match=r"photos\.tar/apple/cut\.jpg: "):
        source.read(item)
