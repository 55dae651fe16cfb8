from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import make_source
from PIL import Image
from torchvision.transforms import v2

from d4m_fast.errors import DataError, PreflightError
from d4m_fast.evaluation import images
from d4m_fast.evaluation.images import images_per_class, load_images, match_classes, random_subset
from d4m_fast.sources.records import Item


def test_images_of_the_right_size_are_untouched() -> None:
    source = make_source(["a", "b"], [2, 1])
    found = load_images(source, 32)
    assert found.images.shape == (3, 3, 32, 32)
    assert found.images.dtype == torch.uint8
    assert found.images[:, 0, 5, 5].tolist() == [0, 1, 10]
    assert found.labels.tolist() == [0, 0, 1]


def test_other_sizes_are_resized_bicubically() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    source = make_source(["a"], [1])
    object.__setattr__(source, "read", lambda item: Image.fromarray(pixels))
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(load_images(source, 32).images[0].permute(1, 2, 0).numpy(), expected)


def test_labels_are_the_reference_ids_of_the_folders() -> None:
    run, reference = make_source(["c", "a"], [1, 2]), make_source(["a", "b", "c"], [1, 1, 1])
    ids = match_classes(run, reference)
    assert ids == {0: 2, 1: 0}
    assert load_images(run, 32, ids=ids).labels.tolist() == [2, 0, 0]


def test_first_folder_without_match_is_named() -> None:
    with pytest.raises(DataError, match="'x'"):
        match_classes(make_source(["a", "x", "y"], [1, 1, 1]), make_source(["a"], [1]))


def test_random_subset_is_balanced_and_deterministic() -> None:
    source = make_source(["a", "b", "c"], [9, 9, 7])
    drawn = random_subset(source, 5, 1)
    assert Counter(item.class_id for item in drawn) == {0: 5, 1: 5, 2: 5}
    assert len(set(drawn)) == 15
    assert drawn == random_subset(source, 5, 1)
    assert drawn != random_subset(source, 5, 2)


def test_random_subset_of_a_class_depends_on_nothing_else() -> None:
    source, shuffled = make_source(["a", "b"], [9, 9]), make_source(["a", "b"], [9, 9])
    object.__setattr__(shuffled, "items", list(reversed(source.items)))
    assert random_subset(source, 4, 0) == random_subset(shuffled, 4, 0)
    assert random_subset(source, 4, 0, [1]) == random_subset(source, 4, 0)[4:]


def test_random_subset_varies_all_members() -> None:
    source = make_source(["a"], [5])
    counts = Counter(item.rank for seed in range(500) for item in random_subset(source, 2, seed))
    assert all(abs(counts[rank] - 200) < 60 for rank in range(5))


def test_small_class_is_refused() -> None:
    with pytest.raises(DataError, match="class 'b' has 3"):
        random_subset(make_source(["a", "b"], [5, 3]), 4, 0)


def test_budget() -> None:
    assert images_per_class(make_source(["a", "b"], [3, 3])) == 3
    with pytest.raises(DataError, match="'b' has 2"):
        images_per_class(make_source(["a", "b"], [3, 2]))
    with pytest.raises(DataError, match="'a' has 0"):
        images_per_class(make_source(["a"], [0]))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (199, 301), (64, 64), (31, 47)])
def test_oblong_images_are_prepared_as_torchvision_prepares_them(width: int, height: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    source = make_source(["a"], [1])
    object.__setattr__(source, "read", lambda item: Image.fromarray(pixels))
    for size, shorter_side in ((48, 56), (32, 32)):
        preset = v2.Compose([v2.Resize(shorter_side), v2.CenterCrop(size)])
        expected = np.asarray(preset(Image.fromarray(pixels)))
        images = load_images(source, size, shorter_side=shorter_side).images[0].permute(1, 2, 0).numpy()
        assert np.array_equal(images, expected)


def test_a_large_set_lies_in_a_file_that_nobody_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(["a", "b"], [50, 50], side=16)
    in_memory = load_images(source, 16)
    monkeypatch.setattr(images, "MOST_IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mapped = load_images(source, 16)
    assert torch.equal(mapped.images, in_memory.images)
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(PreflightError, match=r"the images of a set need up to 76,800 bytes, 0 are free"):
        load_images(source, 16)


def test_the_first_damaged_image_is_named() -> None:
    source = make_source(["a"], [200])
    read = source.read

    def failing(item: Item) -> Image.Image:
        if item.rank >= 70:
            raise DataError(f"image {item.rank} is damaged")
        return read(item)

    object.__setattr__(source, "read", failing)
    with pytest.raises(DataError, match="image 70 is damaged"):
        load_images(source, 32)
