"""Whether latents on the disk are as they were written, of finished and of unfinished encodings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d4m_fast.errors import DamageError
from d4m_fast.runs.latent_files import LatentFiles
from d4m_fast.runs.latents import INDEX, LAYOUT, LAYOUT_SCHEMA, MISPLACED, folder_name
from d4m_fast.runs.ranges import FOLDER, RANGE, class_rows
from d4m_fast.storage import files
from d4m_fast.storage.state import LATENTS, read_state, require_state


def damaged_files(root: Path) -> Iterator[tuple[Path, str, tuple[Path, ...]]]:
    """Yield the files of a latents directory that are not as they were written, each with the reason.

    The last of each is what says that they are there, and is to be removed for them to be made again.
    """
    name, schema = (INDEX, LATENTS) if files.is_there(root / INDEX) else (LAYOUT, LAYOUT_SCHEMA)
    marks = (root / INDEX, root / LAYOUT)
    try:
        state = read_state(root / name, schema)
    except DamageError as error:
        yield root / name, error.reason, marks
        return
    if state is None:
        return
    if folder_name(state["made_by"]) != root.name:
        yield root / name, MISPLACED, marks
    elif name == INDEX:
        for path, reason in LatentFiles.from_json(root, state).damaged():
            yield path, reason, marks
    else:
        yield from _damaged_ranges(root, state)


def _damaged_ranges(root: Path, layout: Mapping[str, Any]) -> Iterator[tuple[Path, str, tuple[Path, ...]]]:
    """Yield what is damaged of an encoding that is not finished."""
    counts = {int(class_id): count for class_id, count in layout["counts"].items()}
    latent_files = LatentFiles(root, counts, tuple(layout["shape"]))
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            record = require_state(path, RANGE)
        except DamageError as error:
            yield path, error.reason, (path,)
            continue
        for class_id, ranks, checksums in class_rows(record):
            latent_files.checksums[class_id][ranks] = checksums
            try:
                latent_files.require_rows(class_id, ranks)
            except DamageError as error:
                yield latent_files.file(class_id), error.reason, (path,)
