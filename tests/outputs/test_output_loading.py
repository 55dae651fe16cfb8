"""Each form, loaded by the library it is made for: pixels, labels, names and provenance are the manifest's."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import socket
import subprocess
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
import torchvision.datasets
from converting import COLUMNS, FORMS, Expected, converted, expected, made_of
from driving import CLASSES, Finished, run_cli
from PIL import Image

from d4m_fast.outputs import parquet

HOSTILE = (
    *("yes", "null", "1e3", "- x: #", "[a]{b}*?", "\"quoted\" 'single'", "<b>&amp;|pipe", "`tick` $x$ \\n", "%s{0}~"),
    *("日本語 😀", "CON", "@at, !bang", "e\u0301a", "x" * 255, "README", "train-00000.tar", "output.json.", "~", "*"),
)
"""Names of class folders that YAML, Markdown, globs, formats, shells or Windows give a meaning to."""


@pytest.fixture(scope="module")
def images(finished: Finished) -> dict[str, Expected]:
    return expected(finished.run)


@pytest.fixture(scope="module")
def outputs(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("outputs")
    return {form: converted(finished.run, form, root / form) for form in FORMS}


@pytest.fixture(scope="module")
def hostile(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_of(tmp_path_factory.mktemp("hostile"), HOSTILE, tiny_model)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache of `datasets`, while any connection is an error."""

    def connect(*args: object) -> None:
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with left_open():
        yield tmp_path / "cache"


@contextlib.contextmanager
def left_open() -> Iterator[None]:
    """Close the files that `webdataset` and `datasets` leave open; they warn of them, whenever they are collected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()


def load(path: Path, cache: Path, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(path), split="train", cache_dir=str(cache), **options)


def same_image(image: Any, of: Expected) -> None:
    assert np.array_equal(np.asarray(image), of.pixels)


def samples(shards: str | list[str]) -> list[dict[str, Any]]:
    import webdataset

    with left_open():
        return list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))


def test_torchvision_reads_the_folders(outputs: dict[str, Path], finished: Finished) -> None:
    folder = torchvision.datasets.ImageFolder(str(outputs["imagefolder"]))
    original = torchvision.datasets.ImageFolder(str(finished.run / "images"))
    assert folder.classes == original.classes == list(CLASSES)
    assert len(folder) == len(original) == 6
    for (image, label), (of, of_label) in zip(folder, original, strict=True):
        assert label == of_label
        assert np.array_equal(np.asarray(image), np.asarray(of))
    files = [Path(file) for file, _ in folder.samples]
    assert [file.read_bytes() for file in files] == [Path(file).read_bytes() for file, _ in original.samples]


def test_the_folders_have_a_manifest_and_the_classes(outputs: dict[str, Path], images: dict[str, Expected]) -> None:
    out = outputs["imagefolder"]
    folder = torchvision.datasets.ImageFolder(str(out))
    labels = {str(Path(file).relative_to(out)): label for file, label in folder.samples}
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert {row["file"]: row["label"] for row in rows} == labels
    for row in rows:
        assert {name: row[name] for name in COLUMNS} == {name: images[row["sha256"]].row[name] for name in COLUMNS}
    classes = json.loads((out / "classes.json").read_text())
    assert [(each["label"], each["folder"], each["images"]) for each in classes] == [
        (label, name, 2) for label, name in enumerate(CLASSES)
    ]


def test_webdataset_reads_the_shards(outputs: dict[str, Path], images: dict[str, Expected]) -> None:
    read = samples(f"{outputs['webdataset']}/train-{{00000..00001}}.tar")
    assert len(read) == 6
    keys = [sample["__key__"] for sample in read]
    assert keys == sorted(set(keys))
    assert {sample["json"]["sha256"] for sample in read} == set(images)
    for sample in read:
        of = images[sample["json"]["sha256"]]
        same_image(sample["png"], of)
        assert sample["cls"] == sample["json"]["label"] == of.row["class_id"]
        assert {name: sample["json"][name] for name in COLUMNS} == {name: of.row[name] for name in COLUMNS}
        assert f"images/{sample['json']['file']}" == of.row["file"]


def test_webdataset_reads_each_image_once_with_two_loaders(
    outputs: dict[str, Path], images: dict[str, Expected]
) -> None:
    import webdataset

    shards = f"{outputs['webdataset']}/train-{{00000..00001}}.tar"
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=2).shuffle(10).decode("torchrgb").to_tuple("png", "cls", "json")
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    read = [(description["sha256"], label) for _, label, description in loader]
    assert sorted(read) == sorted((sha256, of.row["class_id"]) for sha256, of in images.items())


def test_the_documents_of_the_shards_say_what_is_in_them(outputs: dict[str, Path]) -> None:
    out = outputs["webdataset"]
    listing = json.loads((out / "dataset.json").read_text())
    assert (listing["images"], listing["classes"], listing["image"]) == (6, 3, "png")
    assert [row["images"] for row in listing["shards"]] == [4, 2]
    for row in listing["shards"]:
        assert (out / row["file"]).stat().st_size == row["bytes"]
    classes = json.loads((out / "classes.json").read_text())
    assert [(each["label"], each["class_id"], each["folder"]) for each in classes] == [
        (label, label, name) for label, name in enumerate(CLASSES)
    ]


def test_tars_hold_nothing_of_the_machine_and_are_sorted(outputs: dict[str, Path]) -> None:
    for file in sorted(outputs["webdataset"].glob("*.tar")):
        with tarfile.open(file) as tar:
            members = tar.getmembers()
        names = [member.name for member in members]
        assert names == sorted(names)
        for member in members:
            owner = (member.uid, member.gid, member.uname, member.gname)
            assert (owner, member.mtime, member.mode) == ((0, 0, "", ""), 0, 0o644)
            assert member.isreg() and not member.pax_headers
        assert file.read_bytes()[257:265] == b"ustar\x0000"
        listed = subprocess.run(["tar", "tf", file], capture_output=True, text=True, check=True).stdout
        assert listed.split() == names


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_the_parquet_files(
    outputs: dict[str, Path], images: dict[str, Expected], offline: Path, streaming: bool
) -> None:
    import datasets

    dataset = load(outputs["parquet"], offline, streaming=streaming)
    assert dataset.features["image"] == datasets.Image()
    assert dataset.features["label"] == datasets.ClassLabel(names=list(CLASSES))
    rows = list(dataset)
    assert {row["sha256"] for row in rows} == set(images) and len(rows) == 6
    for row in rows:
        of = images[row["sha256"]]
        same_image(row["image"], of)
        assert row["label"] == of.row["class_id"]
        assert dataset.features["label"].int2str(row["label"]) == of.folder
        assert {name: row[name] for name in COLUMNS} == {name: of.row[name] for name in COLUMNS}


def test_the_card_has_the_sizes_that_datasets_counts(outputs: dict[str, Path], offline: Path) -> None:
    import datasets

    builder = datasets.load_dataset_builder(str(outputs["parquet"]), cache_dir=str(offline))
    told = builder.info.splits["train"]
    dataset = load(outputs["parquet"], offline)
    assert told.num_examples == len(dataset) == 6
    assert told.num_bytes == builder.info.dataset_size
    assert told.num_bytes == pytest.approx(dataset.data.nbytes, rel=0.02)  # offsets, one for each file and column
    files = outputs["parquet"].glob("data/*.parquet")
    assert builder.info.download_size == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("form", ["imagefolder", "webdataset"])
def test_datasets_reads_the_other_forms_by_their_cards(
    outputs: dict[str, Path], images: dict[str, Expected], offline: Path, form: str
) -> None:
    by_pixels = {of.pixels.tobytes(): of for of in images.values()}
    assert len(by_pixels) == 6
    image, label = {"imagefolder": ("image", "label"), "webdataset": ("png", "cls")}[form]
    dataset = load(outputs[form], offline)
    assert len(dataset) == 6
    if form == "imagefolder":
        assert dataset.features["label"].names == list(CLASSES)
    for row in dataset:
        assert row[label] == by_pixels[np.asarray(row[image]).tobytes()].row["class_id"]


def test_pandas_reads_the_parquet_files(outputs: dict[str, Path], images: dict[str, Expected]) -> None:
    frame = pandas.read_parquet(outputs["parquet"] / "data")
    assert list(frame.columns) == ["image", "label", *COLUMNS]
    assert len(frame) == 6
    for row in frame.to_dict("records"):
        of = images[row["sha256"]]
        assert row["image"]["bytes"] == of.data
        assert f"images/{row['image']['path']}" == of.row["file"]
        assert {name: row[name] for name in COLUMNS} == {name: of.row[name] for name in COLUMNS}


def test_row_groups_are_small(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 3)
    out = converted(finished.run, "parquet", tmp_path / "out")
    sizes = []
    for file in sorted(out.glob("data/*.parquet")):
        metadata = pyarrow.parquet.read_metadata(file)
        sizes.append([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    assert sizes == [[3, 1], [2]]


@pytest.mark.parametrize(("image_format", "field"), [("jpeg", "jpg"), ("webp", "webp")])
def test_other_formats_of_images_stay_what_they_are(
    tmp_path: Path, tiny_model: Path, offline: Path, image_format: str, field: str
) -> None:
    run = made_of(tmp_path, CLASSES, tiny_model, "--format", image_format)
    images = expected(run)
    (shard,) = converted(run, "webdataset", tmp_path / "webdataset").glob("*.tar")
    for sample in samples(str(shard)):
        same_image(sample[field], images[sample["json"]["sha256"]])
    for row in load(converted(run, "parquet", tmp_path / "parquet"), offline):
        same_image(row["image"], images[row["sha256"]])
    folder = torchvision.datasets.ImageFolder(str(converted(run, "imagefolder", tmp_path / "folders")))
    assert [Path(file).suffix for file, _ in folder.samples] == [f".{field}"] * 3


@pytest.mark.parametrize("form", FORMS)
def test_datasets_gives_hostile_class_names_back(hostile: Path, tmp_path: Path, offline: Path, form: str) -> None:
    images = expected(hostile)
    by_pixels = {of.pixels.tobytes(): of for of in images.values()}
    out = converted(hostile, form, tmp_path / form)
    dataset = load(out, offline)
    assert len(dataset) == len(HOSTILE)
    image, label = ("png", "cls") if form == "webdataset" else ("image", "label")
    classes = json.loads((out / "classes.json").read_text(encoding="utf-8"))
    names = [each["folder"] for each in classes] if form == "webdataset" else dataset.features["label"].names
    assert sorted(names) == sorted(HOSTILE)
    for row in dataset:
        assert names[row[label]] == by_pixels[np.asarray(row[image]).tobytes()].folder


def test_torchvision_and_webdataset_give_hostile_class_names_back(hostile: Path, tmp_path: Path) -> None:
    images = expected(hostile)
    out = converted(hostile, "imagefolder", tmp_path / "folders")
    assert torchvision.datasets.ImageFolder(str(out)).classes == sorted(HOSTILE)
    tars = sorted(converted(hostile, "webdataset", tmp_path / "tars").glob("*.tar"))
    for sample in samples(list(map(str, tars))):
        of = images[sample["json"]["sha256"]]
        assert (sample["json"]["file"], sample["cls"]) == (of.row["file"].removeprefix("images/"), of.row["class_id"])


def test_folders_that_are_numbers_have_the_labels_that_their_loader_gives(tmp_path: Path, tiny_model: Path) -> None:
    """The run numbers them 1, 2, 10; ImageFolder sorts them as text."""
    run = made_of(tmp_path, ("1", "2", "10"), tiny_model)
    folders = converted(run, "imagefolder", tmp_path / "folders")
    loaded = torchvision.datasets.ImageFolder(str(folders))
    assert loaded.classes == ["1", "10", "2"]
    rows = [json.loads(line) for line in (folders / "manifest.jsonl").read_text().splitlines()]
    labels = {str(Path(file).relative_to(folders)): label for file, label in loaded.samples}
    assert {row["file"]: row["label"] for row in rows} == labels
    assert {row["file"].split("/")[0]: row["class_id"] for row in rows} == {"1": 0, "2": 1, "10": 2}
    table = pyarrow.parquet.read_table(converted(run, "parquet", tmp_path / "parquet") / "data")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == ["1", "2", "10"]
    assert table["label"].to_pylist() == table["class_id"].to_pylist()


def test_a_part_of_the_classes_has_labels_without_gaps(tmp_path: Path, photos: Path, tiny_model: Path) -> None:
    options = ("--data", photos, "--model", tiny_model, "--ipc", 1, "--steps", 4, "--threads", 1, "--classes", "0,2")
    assert run_cli("distill", *options, "--out", tmp_path / "run", "--artifacts", tmp_path / "art").code == 0
    frame = pandas.read_parquet(converted(tmp_path / "run", "parquet", tmp_path / "out") / "data")
    assert sorted(zip(frame["label"], frame["class_id"], strict=True)) == [(0, 0), (1, 2)]
    for content in frame["image"]:
        assert Image.open(io.BytesIO(content["bytes"])).size == (16, 16)
