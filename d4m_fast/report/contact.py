"""Distilled images beside their nearest real ones, as pictures that stand in the page itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from d4m_fast.errors import DamageError, DataError
from d4m_fast.runs.identity import artifacts_of, require_finished, source_of
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.decode import decode
from d4m_fast.sources.entries import INDEXES
from d4m_fast.storage import files

CLASSES, PER_CLASS = 10, 4
_SIDE = 128  # pixels; larger images are made smaller
_EXACT_SIDE = 64  # up to here a PNG costs little


@dataclass(frozen=True, slots=True)
class Pair:
    """A distilled image and the real one nearest to its prototype, both data URIs."""

    index: int
    distilled: str
    real: str
    origin: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """Some pairs of a class."""

    name: str
    pairs: tuple[Pair, ...]


def contact_sheets(run: Path) -> list[Sheet]:
    """Return sheets of `CLASSES` classes, evenly spread, of `PER_CLASS` pairs each.

    Raises:
        DataError: the directory is no run of d4m-fast, or its images or the real ones are not there.
        RunDirectoryError: the run is not finished.
        DamageError: its manifest is not one.
    """
    data = source_of(run)
    if data is None:
        raise DataError(f"{run}: no run of d4m-fast, so nothing says which real images its own are near to")
    require_finished(run)
    spread = _spread(_manifest_rows(run / "manifest.jsonl"))
    artifacts = artifacts_of(run)
    indexes = None if artifacts is None else artifacts / INDEXES
    real_images = _read_origins(data, {row["nearest"] for row in chain.from_iterable(spread)}, indexes)
    sheets = []
    for rows in spread:
        pairs = []
        for row in rows:
            distilled = data_uri(decode(run / row["file"]))
            pairs.append(Pair(row["index"], distilled, real_images[row["nearest"]], row["nearest"]))
        sheets.append(Sheet(rows[0]["prompt"], tuple(pairs)))
    return sheets


def _manifest_rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = files.read_regular(path).decode().splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            file = PurePosixPath(row["file"])
            if file.parts[:1] != ("images",) or ".." in file.parts:  # a name that leads out of the run's images
                raise ValueError(f"{file} is no image of the run")
            row["class_id"], row["index"], row["prompt"], row["nearest"]  # looked up: one that is missing is damage
    except OSError as error:
        files.refuse_machine_error(path, error)
        raise DataError(f"{path}: {error.strerror}; d4m-fast verify --repair has it made again") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DamageError(f"{path}: damaged ({reason}); d4m-fast verify --repair has it made again", reason) from error
    return rows


def _spread(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the first rows of some classes, from the first class to the last."""
    classes = dict[int, list[dict[str, Any]]]()
    for row in rows:
        classes.setdefault(row["class_id"], []).append(row)
    class_ids, spread = sorted(classes), list[list[dict[str, Any]]]()
    count = min(CLASSES, len(class_ids))
    for i in range(count):
        members = classes[class_ids[i * (len(class_ids) - 1) // max(count - 1, 1)]]
        spread.append(sorted(members, key=lambda row: row["index"])[:PER_CLASS])
    return spread


def _read_origins(data: str, origins: set[str], indexes: Path | None) -> dict[str, str]:
    """Return the data URIs of real images by their origins."""
    source = open_source(data, prompts_needed=False, indexes=indexes)
    pictures = dict[str, str]()
    for item in source.items:
        if item.origin in origins:
            pictures[item.origin] = data_uri(source.read(item))
    missing = min(origins - pictures.keys(), default=None)
    if missing is not None:
        raise DataError(f"{data}: has no image {missing} any more, which the run names as one of its nearest")
    return pictures


def data_uri(image: Image.Image) -> str:
    """Return an image as a data URI: a small one exactly, a large one made smaller and as JPEG."""
    is_small = max(image.size) <= _EXACT_SIDE
    if not is_small:
        image = image.copy()
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if is_small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=85)
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
