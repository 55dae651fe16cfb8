"""Dataset cards: a README.md that Hugging Face's hub and `datasets` read, and that says how the images were made."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath
from typing import Any

import yaml

from d4m_fast.config.convert import ConvertConfig
from d4m_fast.outputs.finished_run import FinishedRun, as_utf8
from d4m_fast.outputs.licences import UNKNOWN, licence_of
from d4m_fast.runs.identity import essence
from d4m_fast.sources.dataset import BUNDLED
from d4m_fast.streams import printable

CARD = "README.md"
_BUNDLED_DATA = "Fashion-MNIST, the 500 images per class that d4m-fast bundles"
# The hub's own words for sizes.
_SIZES = ((0, "n<1K"), (1_000, "1K<n<10K"), (10_000, "10K<n<100K"), (100_000, "100K<n<1M"), (1_000_000, "1M<n<10M"))
# What Markdown, HTML inside it and tables of it give a meaning to.
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&@:])")
_FIELDS = {
    "label": "the class, 0 to the number of classes less one",
    "class_id": "its index in the full set, of which this may be a part",
    "prompt": "the text that the model was given for the class",
    "index": "the image's place in its class",
    "seed": "of the noise that it was made from",
    "cluster_size": "real images in the cluster that it stands for",
    "inertia_share": "that cluster's part of its class's sum of squared distances",
    "nearest": "the real image nearest to the prototype",
    "sha256": "of the image's file",
}
_CITATION = """```
@inproceedings{su2024d4m,
  title = {D\\^{}4M: Dataset Distillation via Disentangled Diffusion Model},
  author = {Su, Duo and Hou, Junjie and Gao, Weizhi and Tian, Yingjie and Tang, Bowen},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {5809--5818},
  year = {2024}
}
```"""


@dataclass(frozen=True, slots=True)
class Loading:
    """Instructions for loading an output.

    Attributes:
        code: lines of Python.
        notes: what to know about labels and order, in Markdown.
        files: pattern of its files for `datasets`.
        settings: options of `datasets` for it.
        info: what `datasets` is told of its columns and sizes, where the files have columns.
    """

    code: str
    notes: str
    files: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] | None = None


def card(run: FinishedRun, config: ConvertConfig, loading: Loading) -> bytes:
    """Return a dataset card, the same for a run wherever it lies."""
    licence = licence_of(run.identity["options"]) if config.license is None else config.license
    header = _yaml(_header(run, licence, loading))
    sections = (
        f"---\n{header}---",
        f"# {markdown(_data_name(run))}, distilled",
        _summary(run),
        f"## How is it loaded?\n\n```python\n{loading.code}\n```\n\n{loading.notes}",
        f"## What is known of each image?\n\n{_table(('field', 'meaning'), _FIELDS.items())}",
        f"## How was it made?\n\n{_table(('what', 'value'), _facts(run))}",
        f"## Licence\n\n{_licence_text(run, config, licence)}",
        f"## Citation\n\nThe method is D4M (https://arxiv.org/abs/2407.15138):\n\n{_CITATION}",
    )
    return ("\n\n".join(sections) + "\n").encode()


def markdown(text: str) -> str:
    """Return Markdown, on one line, that shows a text as it is."""
    return _MARKS.sub(r"\\\1", printable(as_utf8(text)))


def _header(run: FinishedRun, licence: str, loading: Loading) -> dict[str, Any]:
    """Return the fields of the card's first lines, by the hub's names."""
    data_files = {"data_files": [{"split": "train", "path": loading.files}]}
    return {
        "license": licence,
        "pretty_name": f"{_data_name(run)}, distilled",
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(len(run.images))],
        "tags": ["dataset-distillation", "synthetic", "d4m"],
        **({} if loading.info is None else {"dataset_info": dict(loading.info)}),
        "configs": [{"config_name": "default", **data_files, **loading.settings}],
    }


def _yaml(header: dict[str, Any]) -> str:
    """Return YAML of a header, with what cannot be seen escaped: PyYAML writes U+0085 as it is, and reads a space."""
    stream = io.StringIO()
    dumper = yaml.SafeDumper(stream, allow_unicode=True, sort_keys=False, width=10_000)

    def represent(text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')

    dumper.yaml_representers = {**dumper.yaml_representers, str: lambda _, text: represent(text)}
    dumper.open()
    dumper.represent(header)
    dumper.close()
    return stream.getvalue()


def _size_category(count: int) -> str:
    for (_, category), (end, _) in pairwise(_SIZES):
        if count < end:
            return category
    return _SIZES[-1][1]


def _data_name(run: FinishedRun) -> str:
    """Return the name of the real images; of a directory the last part alone, for the rest is of one machine."""
    name = run.identity["options"]["data"]
    return "Fashion-MNIST" if name == BUNDLED else PurePath(name).name


def _model_name(run: FinishedRun) -> str:
    """Return "bundled", a hub id with its commit, or the last part of a directory."""
    options = run.identity["options"]
    if options["revision"] is not None:
        return f"{options['model']}, commit {options['revision']}"
    return "d4m-fast's bundled one" if options["model"] == BUNDLED else PurePath(options["model"]).name


def _summary(run: FinishedRun) -> str:
    count, classes = len(run.images), len(run.classes)
    side = run.identity["options"]["image_size"]
    real = _BUNDLED_DATA if run.identity["options"]["data"] == BUNDLED else _data_name(run)
    return (
        f"{count:,} synthetic images of {classes:,} classes, {side} x {side} pixels, made from real ones"
        f" ({markdown(real)}) with a diffusion model ({markdown(_model_name(run))}) by d4m-fast, a reimplementation of"
        " D4M: the latents of each class are clustered, and a prototype of each cluster is noised and denoised.\n\n"
        "The names of the classes, with their labels, ids and prompts, are in `classes.json`; `output.json` has the"
        " size and SHA-256 of each file."
    )


def _facts(run: FinishedRun) -> Iterator[tuple[str, str]]:
    """Yield what the bytes of the images depend on; no path of the machine that made them."""
    identity = run.identity
    yield "real images", _data_name(run)
    yield "their fingerprint", identity["source_sha256"]
    yield "model", _model_name(run)
    yield "its SHA-256", identity["model_sha256"]
    for name, value in essence(identity)["options"].items():
        if value is not None:
            yield name.replace("_", " "), str(value)
    yield "fingerprint of the run", run.fingerprint
    yield "computed on", identity["machine"]
    yield from identity["versions"].items()


def _licence_text(run: FinishedRun, config: ConvertConfig, licence: str) -> str:
    rights = (
        "What may be done with the images depends on it, and on the licence of the real images that they were made"
        " from, which is not recorded."
    )
    if config.license is not None:
        return f"{markdown(licence)}, as who made this set says."
    if licence == UNKNOWN:
        return f"The licence of the model that made these images is not known to d4m-fast. {rights}"
    return f"The model that made these images is under the licence {markdown(licence)}. {rights}"


def _table(head: tuple[str, str], rows: Any) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for name, value in rows:
        lines.append(f"| {markdown(name)} | {markdown(value)} |")
    return "\n".join(lines)
