"""Forms of output: files that hold the images, and documents beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from d4m_fast.config.convert import ConvertConfig
from d4m_fast.errors import require
from d4m_fast.outputs.finished_run import DistilledImage, FinishedRun, as_utf8
from d4m_fast.runs.output_files import FileSum
from d4m_fast.storage.state import json_lines

MOST_SHARDS = 99_999  # five digits, by which shards sort
CLASSES = "classes.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of an output, and the images it holds: one alone where images are files of their own.

    Attributes:
        name: below the output's directory.
        start: place of its first image among all of them.
        sum: its size and SHA-256 where they are known before it is written, None else; then they are recorded.
    """

    name: str
    start: int
    images: Sequence[DistilledImage]
    sum: FileSum | None = None


class Form(Protocol):
    """A form of output.

    Attributes:
        settings: names of the options of `ConvertConfig` that it takes.
        overhead: bytes that it takes for an image beside the image's own, at most.
        images_in: the document whose rows name the images, where each is a file of its own.
    """

    settings: frozenset[str]
    overhead: int
    images_in: str | None

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that its bytes depend on.

        Raises:
            PreflightError: one is not installed.
        """
        ...

    def arranged(self, run: FinishedRun, config: ConvertConfig) -> FinishedRun:
        """Return the run with its images in the order, and its classes with the labels, of this form.

        Raises:
            UsageError: the run's class folders cannot stand in it.
        """
        ...

    def shards(self, run: FinishedRun, config: ConvertConfig) -> Sequence[Shard]:
        """Return the files that hold the images of an arranged run."""
        ...

    def write(self, file: BinaryIO, shard: Shard, run: FinishedRun) -> None:
        """Write a shard, its images read and checked on the way."""
        ...

    def documents(self, run: FinishedRun, config: ConvertConfig, sums: Mapping[str, FileSum]) -> dict[str, bytes]:
        """Return the other files, by name, once the shards that are recorded have the sizes and SHA-256s `sums`."""
        ...


def cut_shards(run: FinishedRun, config: ConvertConfig, name: str) -> list[Shard]:
    """Cut a run's images into shards of `shard_images`; the last has the rest.

    Args:
        name: of a shard, with {shard} and {shards} for its number and how many there are.

    Raises:
        UsageError: there would be too many.
    """
    count = math.ceil(len(run.images) / config.shard_images)
    require(
        count <= MOST_SHARDS, f"--shard-images {config.shard_images} makes {count:,} files; at most {MOST_SHARDS:,}"
    )
    shards = []
    for shard in range(count):
        start = shard * config.shard_images
        images = run.images[start : start + config.shard_images]
        shards.append(Shard(name.format(shard=shard, shards=count), start, images))
    return shards


def classes_document(run: FinishedRun) -> bytes:
    """Return the JSON of classes.json: a row per class, in the order of the labels."""
    rows = []
    for distilled in run.classes:
        row = {
            "label": distilled.label,
            "class_id": distilled.id,
            "folder": distilled.name,
            "prompt": as_utf8(distilled.prompt),
            "images": distilled.images,
        }
        rows.append(json_lines([row]).rstrip())
    return b"[\n" + b",\n".join(rows) + b"\n]\n"
