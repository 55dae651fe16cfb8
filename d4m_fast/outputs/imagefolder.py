"""A folder per class, as torchvision's ImageFolder reads them, and files beside the folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

from d4m_fast.config.convert import ConvertConfig
from d4m_fast.errors import UsageError
from d4m_fast.outputs.card import CARD, Loading, card
from d4m_fast.outputs.finished_run import MANIFEST, FinishedRun
from d4m_fast.outputs.form import CLASSES, Shard, classes_document
from d4m_fast.runs.output_files import RECORD_FILE, FileSum
from d4m_fast.storage.locks import LOCK_FILES
from d4m_fast.storage.state import json_lines

# Hugging Face's loader would take files called metadata.* for columns, and leave the labels out.
_LOADING = Loading(
    code=(
        "from torchvision.datasets import ImageFolder\n"
        "\n"
        'dataset = ImageFolder("this/folder")\n'
        "image, label = dataset[0]"
    ),
    notes=(
        "`label` is the place of the class's folder among all of them, sorted as text; `class_id` in"
        " `manifest.jsonl`, which has a row per image, is its index in the full set."
    ),
    files="*/*",
    # Else they are left out where a folder's name has a backslash, or all images are of one class.
    settings={"drop_labels": False},
)


class ImageFolder:
    """Class folders of image files, copied as the run has them."""

    settings = frozenset({"license"})
    overhead = 4096 + 512  # the rest of the last block, and the row of the manifest
    images_in: str | None = MANIFEST

    def versions(self) -> dict[str, str]:
        return {}

    def arranged(self, run: FinishedRun, config: ConvertConfig) -> FinishedRun:
        folders = [info.folder for info in run.classes]
        clashing = {CARD, CLASSES, MANIFEST, RECORD_FILE, *LOCK_FILES}.intersection(folders)
        if clashing:
            raise UsageError(
                f"{run.path}: the class folder {min(clashing)} has the name of a file of this form; --to webdataset and"
                " --to parquet have no folders"
            )
        return run.labelled(sorted(folders))

    def shards(self, run: FinishedRun, config: ConvertConfig) -> list[Shard]:
        shards = []
        for start, image in enumerate(run.images):
            file_sum = {"bytes": image.bytes, "sha256": image.sha256}
            shards.append(Shard(image.file.as_posix(), start, (image,), file_sum))
        return shards

    def write(self, file: BinaryIO, shard: Shard, run: FinishedRun) -> None:
        file.write(run.read(shard.images[0]))

    def documents(self, run: FinishedRun, config: ConvertConfig, sums: Mapping[str, FileSum]) -> dict[str, bytes]:
        rows = []
        for image in run.images:
            rows.append({"file": image.file.as_posix(), "bytes": image.bytes, **image.provenance})
        return {
            CARD: card(run, config, _LOADING),
            CLASSES: classes_document(run),
            MANIFEST: json_lines(rows),
        }
