"""The same images in every container that is read: class folders become tars, shards, a tar of tars, parquet files."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

File = tuple[str, bytes]  # "class/name.jpg"


def files_below(folders: Path) -> list[File]:
    """The files of class folders, in the order of their names."""
    paths = sorted(path for path in folders.rglob("*") if path.is_file())
    return [(path.relative_to(folders).as_posix(), path.read_bytes()) for path in paths]


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path: Path, files: Iterable[File], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files:
            add(tar, name, data)
    return path


def tar_bytes(files: Iterable[File]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files:
            add(tar, name, data)
    return stream.getvalue()


def class_of(file: File) -> str:
    return file[0].partition("/")[0]


def base_of(file: File) -> str:
    return file[0].partition("/")[2]


def classes_of(files: Iterable[File]) -> list[str]:
    return sorted({class_of(file) for file in files})


def shuffled(files: Sequence[File], seed: int = 1) -> list[File]:
    return random.Random(seed).sample(list(files), len(files))


def in_shards(files: Sequence[File], per_shard: int = 7) -> Iterator[list[File]]:
    for start in range(0, len(files), per_shard):
        yield list(files[start : start + per_shard])


def plain_tar(root: Path, files: Sequence[File]) -> Path:
    """A tar of class folders, made as `tar -c .` makes one."""
    return write_tar(root / "photos.tar", [(f"./{name}", data) for name, data in files])


def gnu_tar_of_train_and_val(root: Path, files: Sequence[File]) -> Path:
    below = [(f"set/train/{name}", data) for name, data in shuffled(files)]
    return write_tar(root / "set.tar", [*below, (f"set/val/{files[0][0]}", b"")], tarfile.GNU_FORMAT)


def tar_of_tars(root: Path, files: Sequence[File]) -> Path:
    """As ILSVRC2012_img_train.tar."""
    inner = []
    for folder in classes_of(files):
        members = [(base_of(file), file[1]) for file in files if class_of(file) == folder]
        inner.append((f"{folder}.tar", tar_bytes(members)))
    return write_tar(root / "ILSVRC2012_img_train.tar", inner, tarfile.GNU_FORMAT)


def tars_of_classes(root: Path, files: Sequence[File]) -> Path:
    """The same, taken apart once."""
    for folder in classes_of(files):
        members = [(base_of(file), file[1]) for file in files if class_of(file) == folder]
        write_tar(root / "packed" / f"{folder}.tar", members)
    return root / "packed"


def webdataset(root: Path, files: Sequence[File], label: Callable[[File], list[File]], flat: bool = True) -> Path:
    """Shards of samples in a random order, each with what tells its class beside it."""
    for number, shard in enumerate(in_shards(shuffled(files))):
        members = []
        for file in shard:
            name = base_of(file) if flat else file[0]
            stem = name.rpartition(".")[0]
            members.append((name, file[1]))
            members += [(f"{stem}.{suffix}", data) for suffix, data in label(file)]
        write_tar(root / "shards" / f"train-{number:04d}.tar", members)
    return root / "shards"


def shards_with_txt(root: Path, files: Sequence[File]) -> Path:
    return webdataset(root, files, lambda file: [("txt", f"{class_of(file)}\n".encode())])


def shards_with_json(root: Path, files: Sequence[File]) -> Path:
    return webdataset(root, files, lambda file: [("json", json.dumps({"id": 5, "label": class_of(file)}).encode())])


def shards_with_cls(root: Path, files: Sequence[File]) -> Path:
    """Numbers, and their names in classes.txt."""
    classes = classes_of(files)
    folder = webdataset(root, files, lambda file: [("cls", str(classes.index(class_of(file))).encode())])
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return folder


def shards_with_folders_and_cls(root: Path, files: Sequence[File]) -> Path:
    """Numbers, and the classes' folders in the keys; a brace pattern."""
    classes = classes_of(files)
    label = lambda file: [("cls", str(classes.index(class_of(file))).encode()), ("json", b"{}")]  # noqa: E731
    folder = webdataset(root, files, label, flat=False)
    return folder / f"train-{{0000..{len(list(folder.iterdir())) - 1:04d}}}.tar"


def shards_with_folders(root: Path, files: Sequence[File]) -> Path:
    return webdataset(root, files, lambda file: [], flat=False)


def write_parquet(path: Path, files: Sequence[File], classes: Sequence[str], group: int = 5, **options: Any) -> Path:
    """A file as the library `datasets` writes it, but for the rows of a group."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(classes)}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"bytes": data, "path": name.rpartition("/")[2]} for name, data in files]
    labels = [list(classes).index(class_of(file)) for file in files]
    table = pa.table({"image": pa.array(rows, image), "label": pa.array(labels, pa.int64())}, schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, **options)
    return path


def parquet_in_order(root: Path, files: Sequence[File]) -> Path:
    return write_parquet(root / "photos.parquet", files, classes_of(files))


def parquet_shuffled(root: Path, files: Sequence[File]) -> Path:
    """A snapshot of three files in a random order, with the page that the Hub makes of them."""
    parts = list(in_shards(shuffled(files), -(-len(files) // 3)))
    for number, part in enumerate(parts):
        name = f"train-{number:05d}-of-{len(parts):05d}.parquet"
        write_parquet(root / "snapshot" / "data" / name, part, classes_of(files))
    write_parquet(root / "snapshot" / "data" / "test-00000-of-00001.parquet", files[:1], classes_of(files))
    page = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
    (root / "snapshot" / "README.md").write_text(f"---\n{page}---\n# Photos\n")
    return root / "snapshot"


CONTAINERS = MappingProxyType(
    {
        function.__name__: function
        for function in (
            plain_tar,
            gnu_tar_of_train_and_val,
            tar_of_tars,
            tars_of_classes,
            shards_with_txt,
            shards_with_json,
            shards_with_cls,
            shards_with_folders_and_cls,
            shards_with_folders,
            parquet_in_order,
            parquet_shuffled,
        )
    }
)
