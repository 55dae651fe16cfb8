"""Parquet files as Hugging Face's `datasets` reads them, with images inside and their features in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from d4m_fast.config.convert import ConvertConfig
from d4m_fast.errors import PreflightError
from d4m_fast.outputs.card import CARD, Loading, card
from d4m_fast.outputs.finished_run import DistilledImage, FinishedRun
from d4m_fast.outputs.form import CLASSES, Shard, classes_document, cut_shards
from d4m_fast.runs.output_files import FileSum

if TYPE_CHECKING:
    import pyarrow

# A reader takes a row group at a time, also for a single row of it; 100 is what `datasets` writes images with.
ROW_GROUP = 100
_COLUMNS = {
    "class_id": "int64",
    "prompt": "string",
    "index": "int64",
    "seed": "int64",
    "cluster_size": "int64",
    "inertia_share": "float64",
    "nearest": "string",
    "sha256": "string",
}
_LOADING = Loading(
    code=(
        "from datasets import load_dataset\n"
        "\n"
        'dataset = load_dataset("this/folder", split="train")\n'
        'image, label = dataset[0]["image"], dataset[0]["label"]'
    ),
    notes=(
        "Rows are in an order drawn from a seed, not by class, so that `streaming=True` needs no large buffer;"
        ' `dataset.features["label"].names` are the names of the classes.'
    ),
    files="data/train-*",
)


class Parquet:
    """Parquet files of a row per image: its bytes, its label, and how it was made."""

    settings = frozenset({"shard_images", "shuffle_seed", "license"})
    overhead = 4096  # the columns beside the image, and its share of the footer
    images_in: str | None = None

    def versions(self) -> dict[str, str]:
        try:
            import pyarrow
        except ImportError as error:
            raise PreflightError("parquet files need pyarrow: pip install 'd4m-fast[formats]'") from error
        return {"pyarrow": pyarrow.__version__}

    def arranged(self, run: FinishedRun, config: ConvertConfig) -> FinishedRun:
        return run.shuffled(config.shuffle_seed)

    def shards(self, run: FinishedRun, config: ConvertConfig) -> list[Shard]:
        return cut_shards(run, config, "data/train-{shard:05d}-of-{shards:05d}.parquet")

    def write(self, file: BinaryIO, shard: Shard, run: FinishedRun) -> None:
        import pyarrow.parquet

        # Images are compressed already. Dictionaries and bounds of what is different in each row would cost bytes
        # and say nothing.
        repetitive = ["label", "class_id", "prompt", "cluster_size"]
        schema = _schema(run)
        compression = {name: "zstd" for name in ("image.path", "label", *_COLUMNS)}
        with pyarrow.parquet.ParquetWriter(
            file,
            schema,
            compression={**compression, "image.bytes": "none"},
            use_dictionary=repetitive,
            write_statistics=["label", "class_id", "index"],
        ) as writer:
            for start in range(0, len(shard.images), ROW_GROUP):
                images = shard.images[start : start + ROW_GROUP]
                writer.write_table(pyarrow.Table.from_pylist(_rows(images, run), schema), row_group_size=ROW_GROUP)

    def documents(self, run: FinishedRun, config: ConvertConfig, sums: Mapping[str, FileSum]) -> dict[str, bytes]:
        loading = replace(_LOADING, info=_info(run, sums))
        return {CARD: card(run, config, loading), CLASSES: classes_document(run)}


def _rows(images: Sequence[DistilledImage], run: FinishedRun) -> list[dict[str, Any]]:
    rows = []
    for image in images:
        content = {"bytes": run.read(image), "path": image.name}
        rows.append({"image": content, **image.provenance})
    return rows


def _schema(run: FinishedRun) -> pyarrow.Schema:
    """Return the columns, and what `datasets` reads in a file's metadata: which is an image, and the classes' names."""
    import pyarrow

    types = {"string": pyarrow.string(), "int64": pyarrow.int64(), "float64": pyarrow.float64()}
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = {"image": image, "label": pyarrow.int64()}
    columns |= {name: types[dtype] for name, dtype in _COLUMNS.items()}
    names = [info.name for info in run.classes]
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    features |= {name: {"dtype": dtype, "_type": "Value"} for name, dtype in _COLUMNS.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.schema(list(columns.items()), metadata=metadata)


def _info(run: FinishedRun, sums: Mapping[str, FileSum]) -> dict[str, Any]:
    """Return the columns and sizes as `datasets` has them in a card, where it looks for them before it reads a file."""
    names = {str(info.label): info.name for info in run.classes}
    columns: list[dict[str, Any]] = [{"name": "image", "dtype": "image"}]
    columns.append({"name": "label", "dtype": {"class_label": {"names": names}}})
    columns += [{"name": name, "dtype": dtype} for name, dtype in _COLUMNS.items()]
    size = _arrow_bytes(run)
    return {
        "features": columns,
        "splits": [{"name": "train", "num_bytes": size, "num_examples": len(run.images)}],
        "download_size": sum(sums[name]["bytes"] for name in sums if name.startswith("data/")),
        "dataset_size": size,
    }


def _arrow_bytes(run: FinishedRun) -> int:
    """Return the bytes of the whole table in memory."""
    import pyarrow

    rows = []
    for image in run.images:
        rows.append({"image": {"bytes": b"", "path": image.name}, **image.provenance})
    without_images = pyarrow.Table.from_pylist(rows, _schema(run)).nbytes
    return int(without_images) + sum(image.bytes for image in run.images)
