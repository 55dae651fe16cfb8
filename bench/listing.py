"""Seconds that opening a set takes, as class folders, tar shards, a tar of tars and parquet, and what memory it takes.

python bench/listing.py                                   100,000 photographs: those of --photos, copied in turn
python bench/listing.py --images 1281167 --empty          names only: one byte for each image

Each set is opened by a process of its own, anew and by the index that is kept (tars and parquet); of several rounds the
one with the least CPU time. The memory is the process's largest, less what it had before the set was opened.
"""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

ROUNDS = 3
PER_SHARD = 1000
ROWS_PER_GROUP = 100
CONTAINERS = ("folders", "shards", "tar of tars", "parquet")

File = tuple[str, str, bytes]  # class, name, bytes


def images(photos: list[bytes], count: int, classes: int) -> Iterator[File]:
    """Images called as ImageNet's are, class by class."""
    for number in range(count):
        wnid = f"n{10_000_000 + number * classes // count:08d}"
        yield wnid, f"{wnid}_{number}.JPEG", photos[number % len(photos)]


def write_folders(root: Path, files: Iterator[File]) -> Path:
    for wnid, name, data in files:
        folder = root / wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return root


def write_shards(root: Path, files: Iterator[File]) -> Path:
    root.mkdir()
    for number, shard in enumerate(_parts(files)):
        with tarfile.open(root / f"train-{number:05d}.tar", "w") as tar:
            for wnid, name, data in shard:
                _add(tar, name, data)
                _add(tar, name.replace(".JPEG", ".txt"), wnid.encode())
    return root


def write_tar_of_tars(root: Path, files: Iterator[File]) -> Path:
    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w", format=tarfile.GNU_FORMAT) as outer:
        for wnid, members in itertools.groupby(files, key=lambda file: file[0]):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as inner:
                for _, name, data in members:
                    _add(inner, name, data)
            _add(outer, f"{wnid}.tar", stream.getvalue())
    return root / "ILSVRC2012_img_train.tar"


def write_parquet(root: Path, files: Iterator[File]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    for number, part in enumerate(_parts(files, 5000)):
        rows = [{"bytes": data, "path": name} for _, name, data in part]
        table = pa.table({"image": rows, "label": [wnid for wnid, _, _ in part]})
        pq.write_table(table, root / f"train-{number:05d}.parquet", row_group_size=ROWS_PER_GROUP)
    return root


WRITERS = dict(zip(CONTAINERS, (write_folders, write_shards, write_tar_of_tars, write_parquet), strict=True))


def _parts(files: Iterator[File], size: int = PER_SHARD) -> Iterator[list[File]]:
    while part := list(itertools.islice(files, size)):
        yield part


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def peak_mib() -> int:
    """The most memory that this process had; `getrusage` would count its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def _open(data: str, indexes: str) -> None:
    """Open a set in this process, and print what it took."""
    from d4m_fast.sources.dataset import open_source

    before = peak_mib()
    start, start_cpu = time.perf_counter(), time.process_time()
    source = open_source(data, prompts_needed=False, indexes=Path(indexes))
    figures = {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - start_cpu, 2),
        "mib": peak_mib() - before,
        "images": len(source.items),
        "classes": len(source.classes),
    }
    click.echo(json.dumps(figures))


def measure(data: Path, indexes: Path) -> dict[str, float]:
    """The figures of a process that opens a set."""
    ran = subprocess.run(
        [sys.executable, __file__, "--open", data, indexes], capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(ran.stdout)
    return figures


@click.command(help=__doc__)
@click.option("--images", "count", default=100_000, show_default=True)
@click.option("--classes", default=1000, show_default=True)
@click.option("--photos", type=click.Path(path_type=Path), help="A tar of photographs.")
@click.option("--empty", is_flag=True, help="One byte in place of each photograph.")
@click.option("--container", "containers", multiple=True, type=click.Choice(CONTAINERS), default=CONTAINERS)
@click.option("--below", type=click.Path(path_type=Path), help="Where the sets are written meanwhile.")
@click.option("--open", "opened", nargs=2, hidden=True)
def main(
    count: int,
    classes: int,
    photos: Path | None,
    empty: bool,
    containers: tuple[str, ...],
    below: Path | None,
    opened: tuple[str, str] | None,
) -> None:
    if opened is not None:
        _open(*opened)
        return
    contents = [b"x"]
    if photos is not None and not empty:
        with tarfile.open(photos) as tar:
            streams = [tar.extractfile(member) for member in tar if member.isfile()]
            contents = [stream.read() for stream in streams if stream is not None]
    for container in containers:
        with tempfile.TemporaryDirectory(dir=below) as folder:
            place = WRITERS[container](Path(folder) / "set", images(contents, count, classes))
            anew, kept = [], []
            for number in range(ROUNDS):
                indexes = Path(folder) / f"indexes-{number}"
                anew.append(measure(place, indexes))
                kept.append(measure(place, indexes))
            best = min(anew, key=lambda figures: figures["cpu_seconds"])
            row: dict[str, object] = {"container": container, **best}
            if container != "folders":
                row["cpu_seconds_by_index"] = min(figures["cpu_seconds"] for figures in kept)
            row["mib"] = max(figures["mib"] for figures in (*anew, *kept))
            row["bytes_of_images"] = sum(len(data) for _, _, data in images(contents, count, classes))
            click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
