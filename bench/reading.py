"""Images per CPU second, decoded and resized, from folders, tars and parquet; ours beside what others read them with.

python bench/reading.py --photos PHOTOS.tar           class folders of photographs in a tar
python bench/reading.py --photos PHOTOS.tar --draft   what libjpeg's scaled decoding would save and change

The same files in every container, all in the page cache. Each decodes on one thread and resizes to a square with
Pillow's bilinear filter, as `distill` does: torchvision's ImageFolder in a DataLoader without workers, webdataset's own
pipeline, `datasets` with its Image feature. Readers take turns; CPU seconds of the process, the least of the rounds.
"""

from __future__ import annotations

import gc
import io
import itertools
import json
import logging
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from d4m_fast.engine.encode import Loader
from d4m_fast.sources.dataset import open_source

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from containers import File, class_of, classes_of, shards_with_cls, write_parquet  # noqa: E402

ROUNDS = 9
BATCH = 32

Reader = Callable[[], int]  # reads all images, and returns their number


def read_photos(photos: Path, images: int) -> list[File]:
    """So many images of a tar of class folders, called by their numbers; it is begun again where it has fewer."""
    with tarfile.open(photos) as tar:
        members = [member for member in tar if member.isfile()]
        contents = [(Path(member.name).parent.name, tar.extractfile(member)) for member in members]
        read = [(folder, stream.read()) for folder, stream in contents if stream is not None]
    chosen = random.Random(0).sample(read, min(images, len(read)))
    return [
        (f"{folder}/{n:06d}.jpg", data)
        for n, (folder, data) in enumerate(itertools.islice(itertools.cycle(chosen), images))
    ]


def ours(data: Path, side: int, indexes: Path) -> Reader:
    """What `distill` reads its batches with, in its order."""
    source = open_source(str(data), indexes=indexes)
    load = Loader(source, side, None, torch.device("cpu"))

    def read() -> int:
        for start in range(0, len(source.items), BATCH):
            assert not load((start, start + BATCH)).failures
        return len(source.items)

    return read


def resized(image: Image.Image, side: int) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)))


def torchvision_folder(folders: Path, side: int) -> Reader:
    from torchvision.datasets import ImageFolder

    loader = torch.utils.data.DataLoader(ImageFolder(folders, lambda image: resized(image, side)), BATCH)
    return lambda: sum(len(batch) for batch, _ in loader)


def webdataset_shards(shards: Path, side: int) -> Reader:
    import webdataset

    files = sorted(map(str, shards.glob("*.tar")))

    def batches() -> Iterator[tuple[torch.Tensor, object]]:
        pipeline = (
            webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg", "cls")
        )
        yield from torch.utils.data.DataLoader(pipeline.map_tuple(lambda image: resized(image, side), int), BATCH)

    return lambda: sum(len(batch) for batch, _ in batches())


def datasets_parquet(file: Path, side: int, cache: Path) -> Reader:
    import datasets

    datasets.disable_progress_bars()
    photos = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(cache))

    def transform(rows: dict[str, list[Image.Image]]) -> dict[str, list[torch.Tensor]]:
        return {"image": [resized(image, side) for image in rows["image"]]}

    loader = torch.utils.data.DataLoader(photos.select_columns("image").with_transform(transform), BATCH)
    return lambda: sum(len(batch["image"]) for batch in loader)


def make_readers(files: list[File], root: Path, side: int) -> dict[tuple[str, str], Reader]:
    """Container and reader -> how all is read."""
    folders, indexes = root / "folders", root / "indexes"
    for name, data in files:
        (folders / name).parent.mkdir(parents=True, exist_ok=True)
        (folders / name).write_bytes(data)
    shards = shards_with_cls(root, files)
    # One file, with row groups of a hundred images, as `datasets` writes them.
    ordered = sorted(files, key=class_of)
    parquet = write_parquet(root / "photos.parquet", ordered, classes_of(files), group=100)
    mixed = write_parquet(
        root / "mixed.parquet", random.Random(1).sample(files, len(files)), classes_of(files), group=100
    )
    return {
        ("folders", "d4m-fast"): ours(folders, side, indexes),
        ("folders", "torchvision ImageFolder + DataLoader"): torchvision_folder(folders, side),
        ("tar shards", "d4m-fast"): ours(shards, side, indexes),
        ("tar shards", "webdataset"): webdataset_shards(shards, side),
        ("parquet", "d4m-fast"): ours(parquet, side, indexes),
        ("parquet, shuffled", "d4m-fast"): ours(mixed, side, indexes),
        ("parquet", "datasets"): datasets_parquet(parquet, side, root / "cache"),
    }


def seconds_of(read: Reader, images: int) -> float:
    gc.collect()
    start = time.process_time()
    assert read() == images
    return time.process_time() - start


def compare_draft(files: list[File], side: int) -> dict[str, object]:
    """Decode every image whole, and as libjpeg scales it to no less than the side: time, greatest and mean change."""
    seconds = {"whole": 0.0, "draft": 0.0}
    largest, total, drafted = 0, 0.0, 0
    for _, data in files:
        squares = {}
        for how in seconds:
            start = time.process_time()
            image = Image.open(io.BytesIO(data))
            if how == "draft":
                drafted += (
                    image.draft("RGB", (side, side)) is not None and image.size != Image.open(io.BytesIO(data)).size
                )
            squares[how] = np.array(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), np.int16)
            seconds[how] += time.process_time() - start
        change = np.abs(squares["whole"] - squares["draft"])
        largest, total = max(largest, int(change.max())), total + float(change.mean())
    return {
        "draft": True,
        "side": side,
        "images": len(files),
        "images_scaled": drafted,
        "times_as_fast": round(seconds["whole"] / seconds["draft"], 2),
        "largest_change": largest,
        "mean_change": round(total / len(files), 2),
    }


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(path_type=Path), required=True, help="A tar of class folders.")
@click.option("--images", default=400, show_default=True)
@click.option("--side", default=256, show_default=True)
@click.option("--draft", is_flag=True)
def main(photos: Path, images: int, side: int, draft: bool) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    files = read_photos(photos, images)
    if draft:
        click.echo(json.dumps(compare_draft(files, side)))
        return
    with tempfile.TemporaryDirectory() as folder:
        readers = make_readers(files, Path(folder), side)
        seconds: dict[tuple[str, str], list[float]] = {name: [] for name in readers}
        for _ in range(ROUNDS):
            for name, read in readers.items():
                seconds[name].append(seconds_of(read, images))
    size = sum(len(data) for _, data in files) / images
    for (container, reader), taken in seconds.items():
        rate = images / min(taken)
        row = {"container": container, "reader": reader, "images_per_cpu_second": round(rate, 1)}
        click.echo(json.dumps({**row, "side": side, "images": images, "bytes_per_image": round(size)}))


if __name__ == "__main__":
    main()
