"""Labels in SRe2L's layout: replayed beside its own loader, and refused in one line where they do not fit."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import refused, run_cli
from fkd_layout import CLASSES, SIDE, replay_fkd, teacher, write_fkd, write_images

from d4m_fast.errors import DataError
from d4m_fast.evaluation.feeds import StoredFeed, stored_pixels
from d4m_fast.evaluation.fkd import open_fkd
from d4m_fast.evaluation.images import ImageSet, load_images
from d4m_fast.evaluation.label_store import LabelStore
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.stored import StoredLabels
from d4m_fast.evaluation.targets import SoftTargets, log_probabilities
from d4m_fast.sources.dataset import open_source

BATCH, EPOCHS, PER_CLASS = 16, 3, 20
FKD = dataclasses.replace(PROTOCOLS["fkd"], resolution=SIDE, epochs=EPOCHS, batch_size=((1, BATCH),))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", PER_CLASS)


@pytest.fixture(scope="module")
def layout(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    return write_fkd(tmp_path_factory.mktemp("labels") / "fkd", images, EPOCHS, BATCH)


@pytest.fixture
def copy(layout: Path, tmp_path: Path) -> Path:
    return shutil.copytree(layout, tmp_path / "fkd")


def loaded(folder: Path) -> ImageSet:
    return load_images(open_source(str(folder), prompts_needed=False), SIDE)


def opened(path: Path, pictures: ImageSet, work: Path, classes: tuple[int, ...] = (0, 1, 2)) -> LabelStore:
    return StoredLabels(path, CLASSES).open(pictures, FKD, classes, BATCH, work)


@pytest.mark.parametrize("mixes", [True, False])
def test_replay_is_that_of_sre2l(images: Path, tmp_path: Path, mixes: bool) -> None:
    fkd = write_fkd(tmp_path / "fkd", images, EPOCHS, BATCH, mixes=mixes)
    pictures = loaded(images)
    store = opened(fkd, pictures, tmp_path)
    assert (store.epochs, store.classes) == (EPOCHS, len(CLASSES))
    feed = StoredFeed(FKD, pictures, store, BATCH)
    for number, batches in enumerate(replay_fkd(fkd, images, BATCH)):
        labels = store.epoch(number)
        replayed = list(feed.epoch(number, torch.Generator()))
        assert [len(batch.pixels) for batch in replayed] == [16, 16, 16, 12]
        for rows, batch, (pixels, logits) in zip(torch.split(labels.order, BATCH), replayed, batches, strict=True):
            # Pillow rounds to a byte after each of its two passes.
            assert float((batch.pixels - pixels).abs().max()) < 1.5 / 255
            assert torch.equal(labels.logits[rows], logits)
            assert isinstance(batch.targets, SoftTargets)
            assert torch.equal(batch.targets.log_probabilities, log_probabilities(logits, FKD.temperature))


def test_labels_follow_the_file_and_not_its_place(images: Path, layout: Path, tmp_path: Path) -> None:
    pictures = loaded(images)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(2))
    moved = ImageSet(pictures.images[order], pictures.labels[order], tuple(pictures.origins[i] for i in order.tolist()))
    one, two = opened(layout, pictures, tmp_path / "one"), opened(layout, moved, tmp_path / "two")
    rows = one.epoch(1).order[:BATCH]
    expected = stored_pixels(FKD, pictures, one, one.epoch(1), rows)
    assert torch.equal(stored_pixels(FKD, moved, two, two.epoch(1), two.epoch(1).order[:BATCH]), expected)


def test_a_second_opening_imports_nothing(images: Path, copy: Path, tmp_path: Path) -> None:
    first = opened(copy, loaded(images), tmp_path / "work")
    for path in copy.glob("epoch_*/batch_*.tar"):
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened(copy, loaded(images), tmp_path / "work").root == first.root
    os.utime(copy / "epoch_0" / "batch_0.tar")
    with pytest.raises(DataError, match="damaged"):
        opened(copy, loaded(images), tmp_path / "work")


def test_an_import_that_was_cut_off_goes_on(images: Path, copy: Path, tmp_path: Path) -> None:
    last = copy / "epoch_2" / "batch_3.tar"
    data = last.read_bytes()
    last.write_bytes(data[: len(data) // 2])
    stamp = last.stat()
    with pytest.raises(DataError, match=r"epoch_2.batch_3\.tar: damaged"):
        opened(copy, loaded(images), tmp_path / "work")
    (partial,) = (tmp_path / "work").glob("labels/*")
    names = sorted(path.name for path in partial.glob("epoch-*.safetensors"))
    assert names == [f"epoch-0000{i}.safetensors" for i in (0, 1)]
    last.write_bytes(data)
    os.utime(last, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert opened(copy, loaded(images), tmp_path / "work").epochs == EPOCHS


def rewritten(change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    """A change of the parts of the second batch."""

    def apply(folder: Path) -> None:
        path = folder / "epoch_0" / "batch_1.tar"
        parts = torch.load(path, weights_only=False)
        changed = change(parts)
        torch.save(parts if changed is None else changed, path)

    return apply


class Shell:
    """A thing whose unpickling runs a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch run-by-pickle",)


def put(place: int, value: Any) -> Callable[[Path], None]:
    return rewritten(lambda parts: parts.__setitem__(place, value))


def truncated(folder: Path) -> None:
    path = folder / "epoch_0" / "batch_1.tar"
    path.write_bytes(path.read_bytes()[:-300])


def flipped_bits(folder: Path) -> None:
    path = folder / "epoch_0" / "batch_1.tar"
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    path.write_bytes(data)


def as_text(folder: Path) -> None:
    (folder / "epoch_0" / "batch_1.tar").write_text("labels", encoding="utf-8")


def as_directory(folder: Path) -> None:
    (folder / "epoch_0" / "batch_1.tar").unlink()
    (folder / "epoch_0" / "batch_1.tar").mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "epoch missing": (lambda folder: shutil.rmtree(folder / "epoch_1"), "epoch_1 is missing"),
    "batch missing": (lambda folder: (folder / "epoch_0" / "batch_2.tar").unlink(), r"batch_2\.tar is missing"),
    "last batch missing": (lambda folder: (folder / "epoch_1" / "batch_3.tar").unlink(), "3 batches, and epoch_0"),
    "truncated": (truncated, r"batch_1\.tar: damaged"),
    "flipped bits": (flipped_bits, r"batch_1\.tar: damaged"),
    "text": (as_text, r"batch_1\.tar: damaged"),
    "directory": (as_directory, r"batch_1\.tar: cannot be read"),
    "code": (put(3, Shell()), r"holds code \((posix|nt)\.system\)"),
    "another thing": (rewritten(lambda parts: {"state_dict": parts[0]}), "no batch of FKD labels"),
    "too few parts": (rewritten(lambda parts: parts[:5]), "no batch of FKD labels"),
    "crops": (put(0, torch.rand(BATCH, 3)), "the crops are"),
    "crops of other files": (put(0, torch.full((BATCH, 4), 0.37)), "crops of no whole pixels"),
    "crops beyond": (put(0, torch.full((BATCH, 4), 0.75)), "crops beyond the image"),
    "flips": (put(1, torch.zeros(BATCH)), "the flips are torch.float32"),
    "partners": (put(2, torch.full((BATCH,), BATCH)), "partners beyond the batch"),
    "mixup": (put(4, None), "MixUp"),
    "box": (put(4, [0, 0, SIDE + 1, 3]), "not within 32 pixels"),
    "box of text": (put(4, ["0", 0, 3, 3]), "no list of integers"),
    "logits": (put(5, torch.zeros(BATCH, 2, dtype=torch.float16)), "labels of 2 classes"),
    "NaN": (put(5, torch.full((BATCH, 3), torch.nan)), "NaN or infinity in the logits"),
    "other batch": (rewritten(lambda parts: [part[:4] if i < 3 else part for i, part in enumerate(parts)]), "logits"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(images: Path, copy: Path, tmp_path: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    damage(copy)
    with pytest.raises(DataError, match=words) as caught:
        opened(copy, loaded(images), tmp_path / "work")
    assert "\n" not in str(caught.value)
    assert not Path("run-by-pickle").exists()


def test_numbers_of_numpy_1_are_read(images: Path, copy: Path, tmp_path: Path) -> None:
    path = copy / "epoch_0" / "batch_0.tar"
    data = path.read_bytes()
    assert data.count(b"numpy._core.multiarray") == 1
    parts = torch.load(path, weights_only=False)
    buffer = io.BytesIO()
    torch.save(parts, buffer, _use_new_zipfile_serialization=False)  # no checksum over the pickle
    path.write_bytes(buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert opened(copy, loaded(images), tmp_path / "work").epochs == EPOCHS


def test_other_images_are_refused(layout: Path, tmp_path: Path) -> None:
    fewer = loaded(write_images(tmp_path / "fewer", PER_CLASS - 1))
    with pytest.raises(DataError, match="labels of 60 images, and the set has 57"):
        open_fkd(layout, fewer, CLASSES, (0, 1, 2), BATCH)
    pictures = loaded(write_images(tmp_path / "same", PER_CLASS))
    with pytest.raises(DataError, match=r"batches of 16, and the protocol's are of 8; --override batch_size=16"):
        open_fkd(layout, pictures, CLASSES, (0, 1, 2), 8)
    with pytest.raises(DataError, match="labels of 3 classes, and the test set has 2 others"):
        open_fkd(layout, pictures, CLASSES[:2], (0, 1), BATCH)


def test_labels_of_files_that_sorted_otherwise_are_refused(images: Path, layout: Path, tmp_path: Path) -> None:
    pictures = loaded(images)
    places = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
    renamed = dataclasses.replace(pictures, origins=tuple(f"x/{place:02d}.png" for place in places))
    with pytest.raises(DataError, match="no better than chance"):
        opened(layout, renamed, tmp_path)


def test_labels_of_imagenets_classes_are_found_by_folder(tmp_path: Path) -> None:
    folders = ("n02012849_crane", "n01440764", "n03126707")  # 134, 0 and 517
    wide = torch.full((1, 1000), -20.0)

    def label(pixels: torch.Tensor) -> torch.Tensor:
        return wide.repeat(len(pixels), 1).index_copy(1, torch.tensor([134, 0, 517]), teacher(pixels))

    source = write_images(tmp_path / "set", PER_CLASS, classes=folders)
    fkd = write_fkd(tmp_path / "fkd", source, 1, BATCH, label)
    pictures = loaded(source)
    # The ids of the test set are those of its sorted folders.
    store = StoredLabels(fkd, tuple(sorted(folders))).open(pictures, FKD, (0, 1, 2), BATCH, tmp_path)
    rows = store.epoch(0)
    hits = rows.logits.argmax(1) == pictures.labels
    assert bool((hits | (rows.logits.argmax(1) == pictures.labels[rows.partners])).all())


def test_evaluate_replays_them_without_a_teacher(images: Path, layout: Path, tmp_path: Path) -> None:
    test = write_images(tmp_path / "test", 10, seed=1)
    sizes = [f"resolution={SIDE}", f"batch_size={BATCH}", f"test_resize={SIDE}", "lr=0.02"]
    overrides = [word for size in sizes for word in ("--override", size)]
    data = ("--train-data", images, "--test-data", test, "--artifacts", tmp_path / "cache", "--workers", 1)
    common = (images, *data, "--protocol", "fkd", *overrides, "--student", "convnet-2-4", "--seeds", 1)
    common = (*common, "--epochs", EPOCHS, "--arms", "distilled")
    ran = run_cli("evaluate", *common, "--labels", layout, "--json")
    assert ran.code == 0, ran.err
    (row,) = ran.json["rows"]
    assert (row["regime"], row["teacher"]) == ("fixed", "stored")
    assert row["mean"] > 60  # chance is 33
    assert row["label_bytes"] > 0
    assert len(ran.json["provenance"]["labels"]["distilled"]) == 64
    # The store that the import left is labels of our own.
    (store,) = (tmp_path / "cache").glob("evaluation/*/labels/*")
    again = run_cli("evaluate", *common, "--labels", store, "--json")
    assert again.json["rows"][0]["accuracy"] == row["accuracy"]
    refused(run_cli("evaluate", *common, "--labels", images), 1, "no soft labels")
    refused(run_cli("evaluate", *common, "--labels", "nowhere"), 1, "no such directory")
    refused(run_cli("evaluate", *common, "--labels", layout, "--regime", "hard"), 2, "nobody reads them")
    refused(run_cli("evaluate", *common, "--labels", f"random={layout}"), 2, "no such arm is evaluated")
    both = ("--arms", "distilled,random")
    refused(run_cli("evaluate", *common, *both, "--labels", layout), 2, "random has none", "change --arms")
    small = ("--protocol", "small", "--regime", "fixed")
    refused(run_cli("evaluate", *common, "--labels", layout, *small), 2, "cropped by Pillow")
    refused(run_cli("evaluate", *common, "--labels", store, "--override", "resolution=16"), 1, "labels of resolution")
