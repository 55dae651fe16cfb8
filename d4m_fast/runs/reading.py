"""Files of a finished run as its readers have them: the summary, and the rows of all images."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from d4m_fast.errors import DamageError, DataError, RunDirectoryError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.runs.commit import read_of_run
from d4m_fast.runs.identity import essence, require_finished
from d4m_fast.storage import files
from d4m_fast.storage.state import CONFIG, SUMMARY, require_state


def require_run(path: Path) -> None:
    """Refuse a directory that is no run of d4m-fast.

    Raises:
        DataError: there is none.
        RunDirectoryError: it is something else.
    """
    if not os.path.isdir(path):
        raise DataError(f"{path}: no such run directory; give one that d4m-fast distill made")
    if not files.is_there(path / "config.json"):
        raise RunDirectoryError(f"{path}: not a run of ours (no config.json); give one that d4m-fast distill made")


def read_summary(path: Path) -> dict[str, Any]:
    """Return the summary of a finished run, with its place as "run".

    Raises:
        RunDirectoryError: something is left to do.
        DamageError: the config or the summary is not what was written.
    """
    require_finished(path)
    identity = require_state(path / "config.json", CONFIG)
    summary = read_of_run(path / "summary.json", SUMMARY, fingerprint(essence(identity)))
    assert summary is not None
    return {"run": str(path), **summary}


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a finished run's images, by class id and index.

    Raises:
        errors of `read_summary`.
        DamageError: the manifest is not what the summary says.
    """
    file, sha256 = path / "manifest.jsonl", read_summary(path)["sha256_of"]["manifest.jsonl"]
    with SUMMARY.reading(file):
        data = files.read_regular(file)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamageError(f"{file}: damaged (its SHA-256 is another than the summary says); verify --repair mends it")
    return [json.loads(line) for line in data.splitlines()]


def class_ids(path: Path) -> dict[str, int]:
    """Return the class ids of a finished run by their folders, ascending; errors are those of `read_manifest`."""
    ids = {Path(row["file"]).parent.name: row["class_id"] for row in read_manifest(path)}
    return dict(sorted(ids.items(), key=lambda pair: pair[1]))
