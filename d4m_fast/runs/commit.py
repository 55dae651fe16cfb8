"""State files that belong to one run, and among them the records of committed groups: their files and checksums."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from d4m_fast.runs.plan import Group
from d4m_fast.storage.state import GROUP, Schema, publish_state, read_state, write_state

_RECORD_NAME = re.compile(r"(\d{5,})\.json")


def write_of_run(path: Path, schema: Schema, config: str, fields: Mapping[str, Any]) -> None:
    """Write a state file that is refused in any other run.

    Args:
        config: the run's fingerprint.
    """
    write_state(path, schema, {**fields, "config": config})


def read_of_run(path: Path, schema: Schema, config: str) -> dict[str, Any] | None:
    """Return the fields that `write_of_run` wrote; None if there is no file.

    Raises:
        DamageError: it is not what was written, or belongs to another run.
    """
    fields = read_state(path, schema)
    if fields is not None and fields.pop("config", None) != config:
        raise schema.damage(path, "it is of another run")
    return fields


def record_file(run: Path, group: int) -> Path:
    """Return the path of a group's record."""
    return run / "groups" / f"{group:05d}.json"


def recorded_units(names: Iterable[str]) -> set[int]:
    """Return the numbers of the groups, or whatever else, that have a record, from the names of a folder's files."""
    return {int(match[1]) for match in map(_RECORD_NAME.fullmatch, names) if match is not None}


def write_record(run: Path, config: str, record: Mapping[str, Any]) -> bool:
    """Commit a group, whose files must be durable before; returns False where another process has committed it."""
    return publish_state(record_file(run, record["group"]), GROUP, {**record, "config": config})


def read_record(run: Path, group: int, config: str) -> dict[str, Any] | None:
    """Return the record of a group; None if it is not committed.

    Args:
        config: the run's fingerprint.

    Raises:
        DamageError: it is not what was written, or belongs to another group or to another run.
    """
    file = record_file(run, group)
    record = read_of_run(file, GROUP, config)
    if record is None:
        return None
    if record["group"] != group:
        raise GROUP.damage(file, "it is the record of another group")
    for row in files_of(record):
        path = PurePosixPath(row["file"])
        if path.is_absolute() or ".." in path.parts:
            raise GROUP.damage(file, "it names files outside the run")
    return record


def files_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each file of a group: "file" below the run, "bytes" and "sha256"."""
    return [*record["images"], *record["prototypes"]]


def is_of(record: Mapping[str, Any], group: Group) -> bool:
    """Return whether a record has the classes of a planned group; it has not where the plan was made anew."""
    class_ids = dict.fromkeys(row["class_id"] for row in record["images"])  # each once, in order
    return tuple(class_ids) == group.classes
