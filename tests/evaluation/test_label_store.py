"""Stored labels: replayed beside what the teacher saw, whatever the order, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from d4m_fast.errors import DamageError, DataError, ModelError
from d4m_fast.evaluation.feeds import OnlineFeed, StoredFeed, shown_batches, stored_pixels
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.label_store import INDEX, LabelStore, labels_identity, open_labels, write_labels
from d4m_fast.evaluation.protocols import PROTOCOLS, Protocol
from d4m_fast.evaluation.targets import SoftTargets, log_probabilities
from d4m_fast.fingerprints import derive_seed

SIDE, CLASSES = 16, 7
NAMES = list(PROTOCOLS)


def protocol(name: str = "small", **changes: object) -> Protocol:
    values = {"resolution": SIDE, "epochs": 4, "stored_epochs": 3, "cutmix": 1.0, **changes}
    return dataclasses.replace(PROTOCOLS[name], **values)  # type: ignore[arg-type]


def teacher(pixels: torch.Tensor) -> torch.Tensor:
    """A fixed function of the pixels, different at every pixel."""
    weights = torch.randn(3 * SIDE * SIDE, CLASSES, generator=torch.Generator().manual_seed(9))
    return pixels.flatten(1) @ weights


def store(
    root: Path, images: ImageSet, recipe: Protocol, top_k: int | None = None, batch_size: int = 5, draw: int = 0
) -> LabelStore:
    identity = labels_identity(images, recipe, "sha", range(CLASSES), draw, top_k)
    list(write_labels(root, images, recipe, teacher, identity, batch_size=batch_size))
    opened = open_labels(root, images, identity)
    assert opened is not None
    return opened


def pictures(n: int = 13) -> ImageSet:
    images = torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % CLASSES, tuple(f"image {i}" for i in range(n)))


@pytest.mark.parametrize("name", NAMES)
def test_replay_is_what_the_teacher_saw_and_said(tmp_path: Path, name: str) -> None:
    recipe, images = protocol(name), pictures()
    labels = store(tmp_path, images, recipe)
    for number in range(3):
        rows = labels.epoch(number)
        generator = torch.Generator().manual_seed(derive_seed(0, "labels", number))
        for index, pixels, _ in shown_batches(recipe, images, 5, generator):
            assert torch.equal(stored_pixels(recipe, images, labels, rows, index), pixels)
            stored = rows.logits[index].float()
            assert torch.equal(stored, teacher(pixels).half().float())


@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_epoch_equals_the_online_one_of_the_same_recipe(tmp_path: Path, name: str) -> None:
    recipe, images = protocol(name, epochs=3), pictures()
    labels = store(tmp_path, images, recipe, batch_size=13)
    online = OnlineFeed(recipe, images, teacher, 13)
    fixed = StoredFeed(recipe, images, labels, 13)
    for number in range(3):
        (expected,) = online.epoch(number, torch.Generator().manual_seed(derive_seed(0, "labels", number)))
        (batch,) = fixed.epoch(number, torch.Generator())
        assert torch.equal(batch.pixels, expected.pixels)
        assert isinstance(batch.targets, SoftTargets)
        assert isinstance(expected.targets, SoftTargets)
        # Logits of up to a few hundred in float16: their spacing over the temperature.
        spacing = float(teacher(expected.pixels).abs().max()) * 2**-10 / recipe.temperature
        assert float((batch.targets.log_probabilities - expected.targets.log_probabilities).abs().max()) < spacing


def test_labels_follow_the_image_and_not_its_place(tmp_path: Path) -> None:
    recipe, images = protocol(), pictures()
    store(tmp_path, images, recipe)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(2))
    moved = ImageSet(images.images[order], images.labels[order])
    identity = labels_identity(images, recipe, "sha", range(CLASSES), 0, None)
    labels = open_labels(tmp_path, moved, identity)
    assert labels is not None
    rows = labels.epoch(1)
    generator = torch.Generator().manual_seed(derive_seed(0, "labels", 1))
    for index, pixels, _ in shown_batches(recipe, images, 5, generator):
        assert torch.equal(stored_pixels(recipe, moved, labels, rows, index), pixels)


def test_a_batch_of_other_rows_shows_the_same_images(tmp_path: Path) -> None:
    recipe, images = protocol(), pictures()
    labels = store(tmp_path, images, recipe)
    rows = labels.epoch(0)
    all_rows = torch.arange(13)
    together = stored_pixels(recipe, images, labels, rows, all_rows)
    for row in range(13):
        assert torch.equal(stored_pixels(recipe, images, labels, rows, all_rows[row : row + 1])[0], together[row])


def test_equal_images_have_a_row_each(tmp_path: Path) -> None:
    twice = ImageSet(pictures(2).images[[0, 1, 0]], torch.tensor([0, 1, 2]))
    labels = store(tmp_path, twice, protocol())
    assert sorted(labels.rows.tolist()) == [0, 1, 2]


def test_pruned_labels_keep_the_largest_and_the_mass_of_the_rest(tmp_path: Path) -> None:
    recipe, images = protocol(), pictures()
    whole, pruned = store(tmp_path / "all", images, recipe), store(tmp_path / "k", images, recipe, top_k=3)
    rows = torch.arange(13)
    for number in range(3):
        expected = whole.epoch(number).log_probabilities(rows, CLASSES, recipe.temperature).exp()
        probabilities = pruned.epoch(number).log_probabilities(rows, CLASSES, recipe.temperature).exp()
        assert torch.allclose(probabilities.sum(1), torch.ones(13), atol=1e-5)
        largest = expected.topk(3, dim=1).indices
        assert torch.allclose(probabilities.gather(1, largest), expected.gather(1, largest), atol=2e-3)
        rest = probabilities.scatter(1, largest, -1.0)
        for row in rest:
            assert len(torch.unique((row[row >= 0] * 1e5).round())) == 1  # spread evenly


def test_an_interrupted_labelling_goes_on_where_it_stopped(tmp_path: Path) -> None:
    recipe, images = protocol(), pictures()
    identity = labels_identity(images, recipe, "sha", range(CLASSES), 0, None)
    labelling = write_labels(tmp_path / "halted", images, recipe, teacher, identity, batch_size=5)
    next(labelling)
    del labelling
    assert open_labels(tmp_path / "halted", images, identity) is None
    first = (tmp_path / "halted" / "epoch-00000.safetensors").stat().st_mtime_ns
    store(tmp_path / "halted", images, recipe)
    store(tmp_path / "whole", images, recipe)
    assert (tmp_path / "halted" / "epoch-00000.safetensors").stat().st_mtime_ns == first
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (tmp_path / "halted" / path.name).read_bytes()


@pytest.mark.parametrize("damage", ["a byte", "the end", "the record"])
def test_an_epoch_that_was_damaged_before_there_was_an_index_is_made_again(tmp_path: Path, damage: str) -> None:
    recipe, images = protocol(), pictures()
    labelling = write_labels(
        tmp_path / "halted",
        images,
        recipe,
        teacher,
        labels_identity(images, recipe, "sha", range(CLASSES), 0, None),
        batch_size=5,
    )
    next(labelling)
    file = tmp_path / "halted" / "epoch-00000.safetensors"
    data = file.read_bytes()
    if damage == "a byte":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "the end":
        file.write_bytes(data[:50])
    else:
        file.with_suffix(".json").unlink()
    store(tmp_path / "halted", images, recipe)
    assert file.read_bytes() == data
    assert not list(file.parent.glob("epoch-*.json"))


@pytest.mark.parametrize("name", [INDEX, "epoch-00001.safetensors"])
def test_damage_is_noticed(tmp_path: Path, name: str) -> None:
    recipe, images = protocol(), pictures()
    store(tmp_path, images, recipe)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    identity = labels_identity(images, recipe, "sha", range(CLASSES), 0, None)
    with pytest.raises(DamageError, match="evaluate again"):
        labels = open_labels(tmp_path, images, identity)
        assert labels is not None
        labels.epoch(1)


def test_labels_of_something_else_are_refused(tmp_path: Path) -> None:
    recipe, images = protocol(), pictures()
    store(tmp_path, images, recipe)
    others = ImageSet(255 - images.images, images.labels, images.origins)
    for changed, name in (
        (labels_identity(images, recipe, "other", range(CLASSES), 0, None), "teacher"),
        (labels_identity(images, protocol(temperature=9.0), "sha", range(CLASSES), 0, None), "protocol"),
        (labels_identity(others, recipe, "sha", range(CLASSES), 0, None), "images"),
    ):
        with pytest.raises(DataError, match=name):
            open_labels(tmp_path, images, changed)
    with pytest.raises(DataError, match="no labels for image 0"):
        open_labels(tmp_path, others, labels_identity(images, recipe, "sha", range(CLASSES), 0, None))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_without_finite_logits_stores_nothing(tmp_path: Path, value: float) -> None:
    recipe, images = protocol(), pictures()
    identity = labels_identity(images, recipe, "sha", range(CLASSES), 0, None)

    def broken(pixels: torch.Tensor) -> torch.Tensor:
        return teacher(pixels).masked_fill(pixels.new_ones(len(pixels), CLASSES, dtype=torch.bool), value)

    with pytest.raises(ModelError, match="not finite"):
        list(write_labels(tmp_path, images, recipe, broken, identity, batch_size=5))
    assert list(tmp_path.iterdir()) == []


def test_stored_bytes_are_those_of_half_precision(tmp_path: Path) -> None:
    images = pictures(200)
    labels = store(tmp_path, images, protocol(), batch_size=50)
    per_row = 2 * CLASSES + 4 + 4 + 8 + 4 + 1  # logits, order, partner, box of the mix, shift, flip
    assert 3 * 200 * per_row < labels.bytes < 3 * (200 * per_row + 1000)
    assert log_probabilities(labels.epoch(0).logits, 4.0).dtype == torch.float32
    assert F.softmax(labels.epoch(0).logits.float(), 1).shape == (200, CLASSES)
