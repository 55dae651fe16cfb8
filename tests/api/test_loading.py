"""`d4m_fast.load`: datasets that a DataLoader takes, and whose soft labels are of the pixels beside them."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from driving import Finished, write_photos
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Normalize, ToTensor

import d4m_fast
from d4m_fast.evaluation.feeds import StoredFeed
from d4m_fast.evaluation.images import ImageSet, load_images
from d4m_fast.evaluation.label_store import labels_identity, open_labels, write_labels
from d4m_fast.evaluation.protocols import PROTOCOLS, Protocol
from d4m_fast.evaluation.targets import SoftTargets
from d4m_fast.sources.dataset import open_source

QUICK = dataclasses.replace(PROTOCOLS["small"], resolution=16, shift=2, stored_epochs=3, epochs=3)
IMAGENET_LIKE = dataclasses.replace(PROTOCOLS["rded"], resolution=16, stored_epochs=2, epochs=2)


def brightness(pixels: torch.Tensor) -> torch.Tensor:
    """Logits of three classes, which tell whether the pixels are those that were labelled."""
    return pixels.mean(dim=(2, 3)) * 9


def stored(folder: Path, root: Path, protocol: Protocol, top_k: int | None = None) -> ImageSet:
    images = load_images(open_source(str(folder), prompts_needed=False), protocol.resolution)
    identity = labels_identity(images, protocol, "a teacher", (0, 1, 2), 0, top_k)
    assert len(list(write_labels(root, images, protocol, brightness, identity, batch_size=4))) == protocol.stored_epochs
    return images


def test_images_are_those_of_torchvision(finished: Finished) -> None:
    dataset = d4m_fast.load(d4m_fast.open_run(finished.run))
    theirs = ImageFolder(finished.run / "images", transform=ToTensor())
    assert dataset.classes == tuple(theirs.classes)
    assert dataset.targets == theirs.targets
    for (image, label), (their_image, their_label) in zip(dataset, theirs, strict=True):  # type: ignore[call-overload]
        assert label == their_label
        assert torch.equal(image, their_image)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_it(finished: Finished, workers: int) -> None:
    loader = DataLoader(d4m_fast.load(finished.run), batch_size=4, num_workers=workers)
    batches = list(loader)
    assert [(tuple(images.shape), labels.tolist()) for images, labels in batches] == [
        ((4, 3, 16, 16), [0, 0, 1, 1]),
        ((2, 3, 16, 16), [2, 2]),
    ]


def test_a_transform_gets_pillows_image(finished: Finished) -> None:
    dataset = d4m_fast.load(finished.run, transform=lambda image: (type(image), image.mode, image.size))
    assert dataset[5] == ((Image.Image, "RGB", (16, 16)), 2)


def test_a_directory_of_anybodys_images(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "theirs", ("10", "9", "b"), 2)
    dataset = d4m_fast.load(folder)
    assert (dataset.classes, dataset.targets) == (("10", "9", "b"), [0, 0, 1, 1, 2, 2])


def test_labels_of_a_runs_classes_are_positions_by_class_id(finished: Finished, tmp_path: Path) -> None:
    run = d4m_fast.distill(ipc=1, steps=5, classes="1,8", out=tmp_path / "run", artifacts=tmp_path / "art", seed=4)
    dataset = d4m_fast.load(run)
    assert run.classes == dataset.classes == ("1", "8")
    assert [label for _, label in dataset] == [0, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", [QUICK, IMAGENET_LIKE], ids=["shifted", "cropped"])
def test_soft_labels_are_of_the_pixels_beside_them(finished: Finished, tmp_path: Path, protocol: Protocol) -> None:
    stored(finished.run, tmp_path / "labels", protocol)
    dataset = d4m_fast.load(finished.run, labels=tmp_path / "labels")
    assert (dataset.epochs, dataset.temperature) == (protocol.stored_epochs, protocol.temperature)
    shown = []
    for epoch in range(dataset.epochs):
        dataset.set_epoch(epoch)
        images, labels = next(iter(DataLoader(dataset, batch_size=6, num_workers=2)))
        expected = (brightness(images) / protocol.temperature).softmax(1)
        assert torch.allclose(labels, expected, atol=1e-3)  # float16
        assert labels.sum(1).tolist() == pytest.approx([1] * 6)
        shown.append(images)
    assert not torch.equal(shown[0], shown[1])


def test_an_epoch_is_what_a_student_of_evaluate_sees(finished: Finished, tmp_path: Path) -> None:
    images = stored(finished.run, tmp_path / "labels", QUICK)
    identity = labels_identity(images, QUICK, "a teacher", (0, 1, 2), 0, None)
    store = open_labels(tmp_path / "labels", images, identity)
    assert store is not None
    dataset = d4m_fast.load(finished.run, labels=str(tmp_path / "labels"))
    dataset.set_epoch(2)
    order = store.positions[store.epoch(2).order].tolist()
    feed = StoredFeed(QUICK, images, store, 6)
    (batch,) = feed.epoch(2, torch.Generator())
    assert torch.equal(batch.pixels, torch.stack([dataset[i][0] for i in order]))
    assert isinstance(batch.targets, SoftTargets)
    assert torch.allclose(batch.targets.log_probabilities.exp(), torch.stack([dataset[i][1] for i in order]))


def test_workers_that_stay_hear_of_another_epoch(finished: Finished, tmp_path: Path) -> None:
    stored(finished.run, tmp_path / "labels", QUICK)
    dataset = d4m_fast.load(finished.run, labels=tmp_path / "labels")
    loader = DataLoader(dataset, batch_size=6, num_workers=1, persistent_workers=True)
    for epoch in (0, 2, 1):
        dataset.set_epoch(epoch)
        ((images, _),) = loader
        assert torch.equal(images, torch.stack([dataset[i][0] for i in range(6)]))
    loader._iterator = None  # ends the workers


def test_datasets_travel_to_spawned_processes(finished: Finished, tmp_path: Path) -> None:
    stored(finished.run, tmp_path / "labels", QUICK)
    plain, soft = d4m_fast.load(finished.run), d4m_fast.load(finished.run, labels=tmp_path / "labels")
    soft.set_epoch(2)
    assert torch.equal(pickle.loads(pickle.dumps(plain))[3][0], plain[3][0])
    assert torch.equal(pickle.loads(pickle.dumps(soft))[3][0], soft[3][0])


def test_pruned_labels_and_a_transform_of_the_tensor(finished: Finished, tmp_path: Path) -> None:
    stored(finished.run, tmp_path / "labels", QUICK, top_k=2)
    dataset = d4m_fast.load(finished.run, Normalize([0.5] * 3, [0.5] * 3), tmp_path / "labels")
    plain = d4m_fast.load(finished.run, labels=tmp_path / "labels")
    image, label = dataset[-1]
    assert torch.allclose(image * 0.5 + 0.5, plain[5][0], atol=1e-6)
    assert label.tolist() == pytest.approx((brightness(plain[5][0][None]) / 4).softmax(1)[0].tolist(), abs=2e-3)
    with pytest.raises(IndexError):
        _ = dataset[6]


def test_what_is_wrong_is_raised(finished: Finished, tmp_path: Path, photos: Path) -> None:
    root = tmp_path / "labels"
    stored(finished.run, root, QUICK)
    with pytest.raises(d4m_fast.DataError, match="no such directory"):
        d4m_fast.load(tmp_path / "none")
    with pytest.raises(d4m_fast.DataError, match=r"none: no stored labels .* imports SRe2L's there"):
        d4m_fast.load(finished.run, labels=tmp_path / "none")
    with pytest.raises(d4m_fast.DataError, match=r"no labels for .*; they are of other images"):
        d4m_fast.load(photos, labels=root)
    with pytest.raises(d4m_fast.UsageError, match="epoch 3: the labels have epochs 0 to 2"):
        d4m_fast.load(finished.run, labels=root).set_epoch(3)
    (root / "epoch-00001.safetensors").write_bytes(b"")
    dataset = d4m_fast.load(finished.run, labels=root)
    dataset.set_epoch(1)
    with pytest.raises(d4m_fast.DamageError, match="not what its checksum says"):
        _ = dataset[0]
    half = shutil.copytree(finished.run, tmp_path / "half")
    (half / "summary.json").unlink()
    with pytest.raises(d4m_fast.RunDirectoryError, match="not finished"):
        d4m_fast.load(half)
    part = shutil.copytree(finished.run / "images", tmp_path / "part", ignore=shutil.ignore_patterns("cloud"))
    with pytest.raises(d4m_fast.DataError, match="labels of other classes"):
        d4m_fast.load(part, labels=root)
