"""The record of a committed group of classes: its files, their checksums, and what made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from d4m_fast.data.plan import Group
from d4m_fast.data.state import GROUP, read_state, write_state


def record_file(run: Path, group: int) -> Path:
    return run / "groups" / f"{group:05d}.json"


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Commit a group: its files must be durable before."""
    write_state(record_file(run, record["group"]), GROUP, record)


def read_record(run: Path, group: int, config: str) -> dict[str, Any] | None:
    """The record of a group; None if it is not committed.

    Args:
        config: the run's fingerprint.

    Raises:
        DamageError: it is not what was written, or belongs to another group or to another run.
    """
    file = record_file(run, group)
    record = read_state(file, GROUP)
    if record is None:
        return None
    if (record["group"], record["config"]) != (group, config):
        raise GROUP.damage(file, "it is the record of another group or another run")
    if any(PurePosixPath(row["file"]).is_absolute() or ".." in row["file"].split("/") for row in files_of(record)):
        raise GROUP.damage(file, "it names files outside the run")
    return record


def files_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each file of a group: "file" below the run, "bytes" and "sha256"."""
    return [*record["images"], *record["prototypes"]]


def is_of(record: Mapping[str, Any], group: Group) -> bool:
    """Whether a record has the classes of a planned group; it has not where the plan was made anew."""
    return tuple(dict.fromkeys(row["class_id"] for row in record["images"])) == group.classes
