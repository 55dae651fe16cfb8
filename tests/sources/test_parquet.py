"""Parquet files of the library `datasets` and of others, in any order, damaged, ambiguous, or larger than memory."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from containers import File, shuffled, write_parquet
from PIL import Image

from d4m_fast.errors import D4MError, DamageError, DataError, PreflightError
from d4m_fast.sources import parquet_rows
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.records import Source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def picture(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


CLASSES = ("cat", "dog")
FILES: list[File] = [
    (f"{folder}/{folder}{i:02d}.png", picture(i + 40 * k)) for k, folder in enumerate(CLASSES) for i in range(12)
]


def origins(source: Source) -> list[str]:
    return [item.origin for item in source.items]


def write_columns(path: Path, metadata: dict[str, Any] | None = None, **columns: Any) -> Path:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": metadata}})})
    pq.write_table(table, path)
    return path


def test_a_set_that_the_library_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, data in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    datasets.disable_progress_bars()
    photos = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "photos"), split="train", cache_dir=str(tmp_path / "cache")
    )
    embed = datasets.table.embed_table_storage  # as `push_to_hub` does
    photos = photos.with_format("arrow").map(embed, batched=True).with_format(None)
    photos.shuffle(seed=0).to_parquet(tmp_path / "photos.parquet")
    source, reference = open_source(str(tmp_path / "photos.parquet")), open_source(str(tmp_path / "photos"))
    assert (source.classes, list(source.items)) == (reference.classes, list(reference.items))
    assert source.fingerprint == reference.fingerprint


def test_pyarrow_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", FILES, CLASSES)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(PreflightError, match=r"parquet files need pyarrow: pip install 'd4m-fast\[formats\]'"):
        open_source(str(path))


# Columns


IMAGES = [picture(i) for i in range(4)]
STRUCTS = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(IMAGES)]


@pytest.mark.parametrize(
    ("columns", "metadata", "folders"),
    [
        ({"image": IMAGES, "label": ["b", "a", "b", "a"]}, None, ["a", "b"]),
        ({"jpg": IMAGES, "cls": [1, 0, 1, 0]}, None, ["0", "1"]),
        ({"img": STRUCTS, "fine_label": [0, 1, 1, 0], "coarse_label": [0, 0, 0, 0]}, None, ["0", "1"]),
        ({"picture": STRUCTS, "label": [1, 2, 1, 2], "id": [1, 2, 3, 4]}, None, ["1", "2"]),
        (
            {"picture": STRUCTS, "kind": [1, 0, 1, 0], "label": [0, 0, 0, 0]},
            {"picture": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["x", "y"]}},
            ["x", "y"],
        ),
        ({"image": STRUCTS, "label": ["a/b", "..", "a/b", ".."]}, None, ["0", "1"]),
        (
            {"image": STRUCTS, "label": [0, 1, 0, 1]},
            {"label": {"_type": "ClassLabel", "names": ["10", "9"]}},
            ["9", "10"],
        ),
    ],
)
def test_columns(tmp_path: Path, columns: Any, metadata: Any, folders: list[str]) -> None:
    source = open_source(str(write_columns(tmp_path / "a.parquet", metadata, **columns)), prompts_needed=False)
    assert [info.folder for info in source.classes] == folders
    assert sorted(source.read(item).tobytes() for item in source.items) == sorted(
        Image.open(io.BytesIO(data)).tobytes() for data in IMAGES
    )


@pytest.mark.parametrize(
    ("columns", "metadata", "reason"),
    [
        ({"text": ["a"], "label": [0]}, None, "no column of images among text, label"),
        ({"image": STRUCTS, "img": STRUCTS, "label": [0] * 4}, None, r"several columns of images \(image, img\)"),
        ({"image": STRUCTS, "caption": ["a"] * 4}, None, "no column of classes among image, caption; name it label"),
        ({"image": STRUCTS, "label": [0, None, 0, 0]}, None, "row 1 has no label"),
        ({"image": STRUCTS, "label": [0, -1, 0, 0]}, None, "the label -1, which stands for no class"),
        ({"image": STRUCTS, "label": [0, 2, 0, 0]}, None, r"no images of 1 of 3 classes \(1\)"),
        ({"image": STRUCTS, "label": [0.5] * 4}, None, "no column of classes"),
        ({"image": [[data] for data in IMAGES], "label": [0] * 4}, None, "no column of images"),
        ({"image": STRUCTS[:0], "label": []}, None, "no rows|no column"),
        ({"image": [{"bytes": None, "path": "a.png"}] * 2, "label": [0, 0]}, None, "no column of images"),
        (
            {
                "image": pa.array(
                    [{"bytes": None, "path": "a"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                ),
                "label": [0],
            },
            None,
            "its images are not in it, only their names",
        ),
        ({"image": STRUCTS, "label": [0] * 4}, {"label": {"_type": "ClassLabel", "names": []}}, "names for 0 classes"),
        ({"image": STRUCTS, "label": [0] * 4}, {"label": {"_type": "ClassLabel", "names": [1]}}, "are no text"),
    ],
)
def test_columns_that_are_refused(tmp_path: Path, columns: Any, metadata: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_source(str(write_columns(tmp_path / "a.parquet", metadata, **columns)), prompts_needed=False)


@pytest.mark.parametrize("metadata", [b"x", b"[]", b'{"info": 1}', b"[" * 100_000, b'{"info": {"features": {"a": 1}}}'])
def test_odd_metadata_of_the_hub(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": STRUCTS, "label": ["a", "b", "a", "b"]}).replace_schema_metadata(
        {"huggingface": metadata}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    try:
        assert len(open_source(str(tmp_path / "a.parquet")).items) == 4
    except DataError as error:
        assert "its metadata of Hugging Face is damaged" in str(error)


def test_names_that_tell_nothing_apart(tmp_path: Path) -> None:
    for rows in ([{"bytes": data, "path": None} for data in IMAGES], [{"bytes": d, "path": "x/0.png"} for d in IMAGES]):
        source = open_source(str(write_columns(tmp_path / "a.parquet", image=rows, label=["a", "b", "a", "b"])))
        assert origins(source) == ["a/0", "a/2", "b/1", "b/3"]


def test_imagenet_as_the_hub_has_it(tmp_path: Path) -> None:
    """The id stands in the name, the classes are called by their labels; the names sort otherwise than in folders."""
    names = ["n01440764_10026_n01440764.JPEG", "n01440764_1002_n01440764.JPEG", "n01443537_2_n01443537.JPEG"]
    rows = [{"bytes": picture(i), "path": name} for i, name in enumerate(names)]
    features = {"label": {"_type": "ClassLabel", "names": ["tench, Tinca tinca", "goldfish, Carassius auratus"]}}
    source = open_source(str(write_columns(tmp_path / "a.parquet", features, image=rows, label=[0, 0, 1])))
    for name in names:
        path = tmp_path / "train" / name[:9] / f"{name[:-15]}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rows[names.index(name)]["bytes"])  # type: ignore[arg-type]
    reference = open_source(str(tmp_path / "train"))
    assert (source.classes, list(source.items)) == (reference.classes, list(reference.items))
    assert source.fingerprint == reference.fingerprint


def test_rows_without_an_image_are_damaged_images(tmp_path: Path) -> None:
    rows = [*STRUCTS[:3], {"bytes": None, "path": "3.png"}]
    source = open_source(str(write_columns(tmp_path / "a.parquet", image=rows, label=["a", "b", "a", "b"])))
    with pytest.raises(DataError, match=r"b/3\.png: row 3 has no bytes, only a name"):
        source.read(source.items[-1])


# Snapshots


def snapshot(root: Path, page: str, *names: str) -> Path:
    for number, name in enumerate(names):
        write_parquet(root / name, FILES[number :: len(names)], CLASSES)
    (root / "README.md").write_text(page)
    return root


def test_splits_of_a_snapshot(tmp_path: Path) -> None:
    names = [f"data/{split}-{i:05d}-of-00002.parquet" for split in ("train", "validation") for i in range(2)]
    root = snapshot(tmp_path, "# nothing\n", *names)
    train, test = open_source(str(root)), open_source(str(root), split="test")
    assert len(train.items) + len(test.items) == len(FILES) and not set(origins(train)) & set(origins(test))
    page = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/train-*\n---\n"
    (root / "README.md").write_text(page)
    assert origins(open_source(str(root), split="test")) == origins(train)
    with pytest.raises(DataError, match=r"its README\.md names no files for train"):
        open_source(str(root))


def test_a_test_split_without_labels_gives_way_to_the_validation_split(tmp_path: Path) -> None:
    splits = ("test", "data/test*"), ("validation", "data/val*")
    rows = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits)
    page = f"---\nconfigs:\n- data_files:\n{rows}---\n"
    root = snapshot(tmp_path, page, "data/val.parquet")
    unlabelled = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(2)]
    write_columns(root / "data" / "test.parquet", image=unlabelled, label=[-1, -1])
    assert len(open_source(str(root), split="test").items) == len(FILES)


def test_features_on_the_page_alone(tmp_path: Path) -> None:
    page = (
        "---\ndataset_info:\n  features:\n  - name: photo\n    dtype: image\n  - name: kind\n    dtype:\n"
        "      class_label:\n        names:\n          '0': cat\n          '1': dog\n---\n# A set\n"
    )
    (tmp_path / "README.md").write_text(page)
    write_columns(tmp_path / "a.parquet", photo=STRUCTS, other=STRUCTS, kind=[0, 1, 0, 1])
    assert [info.folder for info in open_source(str(tmp_path)).classes] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("---\na: [\n---\n", "its header cannot be read"),
        ("---\na: !!python/object/apply:os.system ['x']\n---\n", "its header cannot be read"),
        ("---\ndataset_info:\n  features:\n  - x\n---\n", "its header cannot be read"),
        ("---\nconfigs:\n- data_files: /etc/*\n---\n", "leads out of the folder"),
        ("---\nconfigs:\n- data_files:\n  - {split: train, path: ../../*}\n---\n", "leads out of the folder"),
        (
            "---\nconfigs:\n- {config_name: a, data_files: x}\n- {config_name: b, data_files: y}\n---\n",
            r"describes several sets \(a, b\)",
        ),
    ],
)
def test_pages_that_are_refused(tmp_path: Path, page: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_source(str(snapshot(tmp_path, page, "data/train.parquet")))


def test_files_of_other_classes_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", FILES, CLASSES)
    write_parquet(tmp_path / "train-1.parquet", FILES[:3], ("cat", "elk"))
    with pytest.raises(DataError, match=r"train-1\.parquet: has other columns or names of classes than"):
        open_source(str(tmp_path))


# Order and memory


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for two row groups."""
    group_bytes = 5 * len(picture())
    monkeypatch.setattr(parquet_rows, "MOST_HELD_BYTES", 2 * group_bytes + 50)


@pytest.mark.usefixtures("small_memory")
def test_rows_in_no_order_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, indexes = write_parquet(tmp_path / "a.parquet", shuffled(FILES), CLASSES), tmp_path / "indexes"
    reference = {name: Image.open(io.BytesIO(data)).tobytes() for name, data in FILES}
    source = open_source(str(path), indexes=indexes)
    assert "are copied to" in source.notes[0] and not list(indexes.glob("*.images"))  # when they are read
    assert {item.origin: source.read(item).tobytes() for item in source.items} == reference
    copy = next(entry for entry in indexes.iterdir() if entry.suffix == ".images")
    assert copy.stat().st_size == sum(len(data) for _, data in FILES)
    monkeypatch.setattr(parquet_rows, "_copy", None)
    again = open_source(str(path), indexes=indexes)
    assert {item.origin: again.read(item).tobytes() for item in again.items} == reference
    data = bytearray(copy.read_bytes())
    data[100] ^= 1
    copy.write_bytes(data)
    damaged = open_source(str(path), indexes=indexes)
    with pytest.raises(DamageError, match="is not what was copied"):
        [damaged.read(item) for item in damaged.items]


@pytest.mark.usefixtures("small_memory")
def test_rows_in_order_are_held(tmp_path: Path) -> None:
    source = open_source(str(write_parquet(tmp_path / "a.parquet", FILES, CLASSES)), indexes=tmp_path / "indexes")
    rows: Any = source.rows  # type: ignore[attr-defined]
    for item in source.items:
        source.read(item)
        assert len(rows._held) <= 2
    assert source.notes == () and [entry.suffix for entry in (tmp_path / "indexes").iterdir()] == [".json"]


@pytest.mark.usefixtures("small_memory")
def test_without_a_cache_the_copy_goes_with_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = write_parquet(tmp_path / "set" / "a.parquet", shuffled(FILES), CLASSES)
    source = open_source(str(path))
    assert len({source.read(item).tobytes() for item in source.items}) == len(FILES)
    (folder,) = tmp_path.glob("d4m-fast-*")
    del source
    assert not folder.exists()


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", FILES, CLASSES)
    source = open_source(str(path))
    write_parquet(path, FILES[::-1], CLASSES)
    with pytest.raises(PreflightError, match="changed since it was indexed"):
        source.read(source.items[0])


def test_a_dictionary_of_one_large_value_takes_little_memory(tmp_path: Path) -> None:
    """Two megabytes in the file would be a hundred gigabytes once decoded."""
    script = """
import sys, resource
import pyarrow as pa, pyarrow.parquet as pq
value, path = b"\\x89PNG" + bytes(1 << 20), sys.argv[1]
rows = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array([value], pa.binary()))
names = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * (1 << 20)], pa.string()))
table = pa.table({"image": rows, "label": names})
pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 22)
"""
    path = tmp_path / "a.parquet"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=120)
    assert path.stat().st_size < 1 << 20
    reader = """
import resource, sys
from d4m_fast.errors import D4MError
from d4m_fast.sources.dataset import open_source
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_source(sys.argv[1])
except D4MError as error:
    print(str(error)[:100])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    ran = subprocess.run([sys.executable, "-c", reader, str(path)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.splitlines()[-1]) < 4096, ran.stdout


# Any bytes


def changed_file(whole: bytes, rng: np.random.Generator) -> bytes:
    data = np.frombuffer(whole, np.uint8).copy()
    kind = rng.integers(4)
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    start = len(data) - footer if kind < 2 else 0  # most changes in the footer, which says where all else is
    places = rng.integers(start, len(data), rng.integers(1, 4))
    data[places] = rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))], len(places))
    return data[: rng.integers(1, len(data))].tobytes() if kind == 3 and rng.integers(3) == 0 else data.tobytes()


def try_changes(path: Path, seeds: Sequence[int], count: int) -> None:
    wholes = []
    for options in ({}, {"compression": "zstd"}, {"use_dictionary": False, "compression": "none"}):
        wholes.append(write_parquet(path, FILES[:8], CLASSES, **options).read_bytes())
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for number in range(count):
            path.write_bytes(changed_file(wholes[number % 3], rng))
            try:
                source = open_source(str(path), prompts_needed=False)
                for item in source.items:
                    assert item.origin.count("/") == 1 and ".." not in item.origin
                    try:
                        source.read(item)
                    except DataError as error:
                        assert "\n" not in str(error)
            except D4MError as error:
                assert "\n" not in str(error)


def test_changed_files_end_in_images_or_one_line(tmp_path: Path) -> None:
    """In a process of its own, whose memory is limited: pyarrow is not ours."""
    script = "import sys, pathlib, test_parquet as t; t.try_changes(pathlib.Path(sys.argv[1]), [0], 800)"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    here = str(Path(__file__).parent)
    code = f"import sys; sys.path[:0] = [{here!r}, {str(Path(here).parent)!r}]; {script}"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.parquet")],
        capture_output=True,
        text=True,
        timeout=600,
        preexec_fn=limit,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
