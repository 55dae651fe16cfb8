"""Find, in parquet files and the page of a Hugging Face set, which columns hold images and classes, and their names."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4m_fast.errors import DataError
from d4m_fast.sources.class_search import list_folders
from d4m_fast.sources.splits import split_of
from d4m_fast.storage import files
from d4m_fast.wording import some

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "class_id", "class_name", "target", "category")
_MOST_PAGE_BYTES = 1 << 24  # of a set's README.md; those of sets of 20,000 classes have 1 MB

Features = Mapping[str, Any]  # name -> {"_type": ...}, as the library `datasets` writes them


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of a set of images, named as pyarrow names the leaves of a schema.

    Attributes:
        path: of the images' file names; None where there is none.
        names: of the labels 0, 1, ...; None where the labels are names, or nobody knows them.
    """

    data: str
    path: str | None
    label: str
    names: tuple[str, ...] | None


def columns_of(schema: Any, place: str, page_features: Features) -> Columns:
    """Return the columns of a pyarrow schema.

    Args:
        place: what messages call the file.
        page_features: from the set's page, where the file itself has none.

    Raises:
        DataError: there is no column of images or of classes, or several.
    """
    features = _features_of(schema, place)
    features = features if features else page_features
    image = _image_column(schema, features, place)
    label = _label_column(schema, features, place)
    names = features.get(label, {}).get("names")
    if names is not None and not all(isinstance(name, str) for name in names):
        raise DataError(f"{place}: the names of {label} are no text; save the set again")
    kind = schema.field(image).type
    is_struct = kind.num_fields > 0
    path = f"{image}.path" if is_struct and kind.get_field_index("path") >= 0 else None
    data = f"{image}.bytes" if is_struct else image
    return Columns(data, path, label, None if names is None else tuple(names))


def _features_of(schema: Any, place: str) -> Features:
    """Return the features that `datasets` wrote into a file's metadata; none where it did not."""
    metadata = schema.metadata
    text = None if metadata is None else metadata.get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{place}: its metadata of Hugging Face is damaged ({error}); save the set again") from error
    return features if isinstance(features, dict) and all(isinstance(row, dict) for row in features.values()) else {}


def _image_column(schema: Any, features: Features, place: str) -> str:
    columns = [field.name for field in schema if features.get(field.name, {}).get("_type") == "Image"]
    if not columns:
        columns = [field.name for field in schema if _holds_files(field.type)]
    if not columns:
        columns = [field.name for field in schema if _is_binary(field.type) and field.name.lower() in _IMAGE_NAMES]
    usable = [name for name in columns if _holds_files(schema.field(name).type) or _is_binary(schema.field(name).type)]
    if len(usable) != 1:
        problem = f"several columns of images ({some(usable)})" if usable else "no column of images"
        raise DataError(f"{place}: {problem} among {some(schema.names)}; one with the bytes of files is needed")
    return str(usable[0])


def _holds_files(kind: Any) -> bool:
    """Return whether a type is a struct with the bytes of a file."""
    at = kind.get_field_index("bytes") if kind.num_fields and hasattr(kind, "get_field_index") else -1
    return at >= 0 and _is_binary(kind.field(at).type)


def _is_binary(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary")


def _label_column(schema: Any, features: Features, place: str) -> str:
    columns = [field.name for field in schema if features.get(field.name, {}).get("_type") == "ClassLabel"]
    if len(columns) != 1:
        usual = [name for name in _LABEL_NAMES if name in (columns if columns else schema.names)]
        columns = [name for name in usual if _is_label(schema.field(name).type)][:1]
    if not columns:
        raise DataError(f"{place}: no column of classes among {some(schema.names)}; name it {_LABEL_NAMES[0]}")
    return str(columns[0])


def _is_label(kind: Any) -> bool:
    text = str(kind)
    return "int" in text or "string" in text


@dataclass(frozen=True, slots=True)
class Page:
    """Header of the README.md of a Hugging Face set.

    Attributes:
        features: of its only configuration; none where it says nothing of them.
        patterns: of the files of each split, below the set's folder; None where it says nothing of them.
    """

    features: Features
    patterns: Mapping[str, Sequence[str]] | None

    def files(self, root: Path, kind: str) -> list[Path]:
        """Return the files of a kind of split: train, test or val."""
        assert self.patterns is not None
        paths: list[Path] = []
        for split, patterns in self.patterns.items():
            if split_of(split) == kind:
                paths += _matching(root, patterns)
        return paths


def page_of(root: Path) -> Page:
    """Return what the README.md of a directory says of its data; a page without a header says nothing.

    Raises:
        DataError: its header is no YAML, or describes several sets.
    """
    page = root / "README.md"
    if not page.is_file():
        return Page({}, None)
    import yaml

    try:
        with files.open_regular(page) as stream:
            text = stream.read(_MOST_PAGE_BYTES).decode("utf-8", "replace")
        header = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---\n") else ""
        # CSafeLoader, where it is built, is ten times as fast; neither makes objects.
        value = yaml.load(header, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if not isinstance(value, dict):
            return Page({}, None)
        return Page(_features_in(value.get("dataset_info")), _patterns_in(value.get("configs"), page))
    except (OSError, yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError, AttributeError) as error:
        raise DataError(f"{page}: its header cannot be read ({type(error).__name__}); mend or remove it") from error


def _features_in(info: Any) -> Features:
    """Return the features of a page's only configuration, in the form that files have them."""
    if isinstance(info, list):
        info = info[0] if len(info) == 1 else None
    if not isinstance(info, dict):
        return {}
    features: dict[str, Any] = {}
    for row in info.get("features", []):
        kind = row.get("dtype")
        if kind == "image":
            features[row["name"]] = {"_type": "Image"}
        elif isinstance(kind, dict) and "class_label" in kind:
            names = kind["class_label"]["names"]
            ordered = [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else list(names)
            features[row["name"]] = {"_type": "ClassLabel", "names": list(map(_text, ordered))}
    return features


def _patterns_in(configs: Any, page: Path) -> dict[str, list[str]] | None:
    """Return the patterns of the default configuration, by split.

    Raises:
        DataError: there are several configurations and none is the default, or a pattern leads out of the folder.
    """
    rows = [row for row in configs if "data_files" in row] if isinstance(configs, list) else []
    if not rows:
        return None
    defaults = [row for row in rows if row.get("default") is True or row.get("config_name") == "default"]
    if len(rows) > 1 and len(defaults) != 1:
        names = some(_text(row.get("config_name")) for row in rows)
        raise DataError(f"{page}: describes several sets ({names}); give the folder of one, or its files")
    data_files = (defaults if len(rows) > 1 else rows)[0]["data_files"]
    if isinstance(data_files, str) or (
        isinstance(data_files, list) and all(isinstance(row, str) for row in data_files)
    ):
        data_files = [{"split": "train", "path": data_files}]
    patterns: dict[str, list[str]] = {}
    for row in data_files:
        paths = row["path"] if isinstance(row["path"], list) else [row["path"]]
        for path in map(_text, paths):
            if path.startswith("/") or ".." in path.split("/"):
                raise DataError(f"{page}: the path {path!a} leads out of the folder; remove it")
            patterns.setdefault(_text(row["split"]), []).append(path)
    return patterns


def _text(value: object) -> str:
    """Return a word or a number of a page as text; a list of aliases to lists could be of any length.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, (str, int, float, type(None))):
        raise TypeError("no text")
    return str(value)


def _matching(root: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the parquet files below a folder, two levels deep at most, that match a pattern; in the order of names."""
    folders = ["", *(f"{name}/" for name in list_folders(root))]
    for outer in folders[1:]:
        folders += [f"{outer}{name}/" for name in list_folders(root / outer)]
    names = []
    for folder in folders:
        names += [f"{folder}{entry.name}" for entry in files.entries(root / folder) if entry.suffix == ".parquet"]
    matching = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return [root / name for name in sorted(matching)]
