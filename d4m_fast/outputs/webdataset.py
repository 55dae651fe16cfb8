"""Tar files as the `webdataset` library reads them, with the same bytes whenever and wherever they are made."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from d4m_fast.config.convert import ConvertConfig
from d4m_fast.outputs.card import CARD, Loading, card
from d4m_fast.outputs.finished_run import DistilledImage, FinishedRun
from d4m_fast.outputs.form import CLASSES, Shard, classes_document, cut_shards
from d4m_fast.runs.output_files import FileSum
from d4m_fast.storage.state import json_lines

DATASET = "dataset.json"
_SHARD = "train-{shard:05d}.tar"


class WebDataset:
    """Tars of three members per image: its label, how it was made, and the image's file as the run has it."""

    settings = frozenset({"shard_images", "shuffle_seed", "license"})
    overhead = 8192  # three headers of 512 bytes, three members padded to blocks of 512, and at most 5,000 of JSON
    images_in: str | None = None

    def versions(self) -> dict[str, str]:
        return {}

    def arranged(self, run: FinishedRun, config: ConvertConfig) -> FinishedRun:
        # Tars are read from the beginning to the end, through a buffer: in the order of the classes, each batch would
        # be of one class.
        return run.shuffled(config.shuffle_seed)

    def shards(self, run: FinishedRun, config: ConvertConfig) -> list[Shard]:
        return cut_shards(run, config, _SHARD)

    def write(self, file: BinaryIO, shard: Shard, run: FinishedRun) -> None:
        # Plain USTAR suffices for short names in ASCII, and is what every tar reads.
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for place, image in enumerate(shard.images, shard.start):
                for suffix, data in _members(image, run):
                    # TarInfo's own defaults are user 0, group 0, no names, mode 644 and the time 0.
                    member = tarfile.TarInfo(f"{place:08d}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))

    def documents(self, run: FinishedRun, config: ConvertConfig, sums: Mapping[str, FileSum]) -> dict[str, bytes]:
        rows = []
        for shard in self.shards(run, config):
            rows.append({"file": shard.name, "images": len(shard.images), **sums[shard.name]})
        listing = {
            "images": len(run.images),
            "classes": len(run.classes),
            "image": _suffix(run),
            "shuffle_seed": config.shuffle_seed,
            "shards": rows,
        }
        return {
            CARD: card(run, config, _loading(run, len(rows))),
            CLASSES: classes_document(run),
            DATASET: f"{json.dumps(listing, indent=1)}\n".encode(),
        }


def _members(image: DistilledImage, run: FinishedRun) -> Iterator[tuple[str, bytes]]:
    """Yield the members of an image in the order of their names, as `tar --sort=name` has them."""
    yield ".cls", str(image.label).encode()
    yield ".json", json_lines([{"file": image.name, **image.provenance}])
    yield image.file.suffix, run.read(image)


def _suffix(run: FinishedRun) -> str:
    """Return the field of a sample that holds the image: a run's images are all of one format."""
    return run.images[0].file.suffix.removeprefix(".")


def _loading(run: FinishedRun, count: int) -> Loading:
    files = _SHARD.format(shard=0) if count == 1 else f"train-{{00000..{count - 1:05d}}}.tar"
    return Loading(
        code=(
            "import webdataset\n"
            "\n"
            f'shards = "this/folder/{files}"\n'
            "dataset = webdataset.WebDataset(shards, shardshuffle=100).shuffle(1000)\n"
            f'dataset = dataset.decode("pil").to_tuple("{_suffix(run)}", "cls", "json")'
        ),
        notes=(
            "Images are in an order drawn from a seed, not by class; the member `cls` is the label, an index into"
            " `classes.json`, and `json` says how the image was made."
        ),
        files="train-*.tar",
    )
