"""Identities of runs: that in a run's directory, the part of it that the bytes depend on, and differences of two."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d4m_fast.errors import RunDirectoryError
from d4m_fast.storage import files
from d4m_fast.storage.state import CONFIG, HEAD_BYTES, require_state

# Parts of an identity that change no byte of a run: limits that it starts by, the places of its inputs, which are
# identified by their hashes, and the form that is derived from it when it is done.
INESSENTIAL = frozenset(
    {"max_bad_fraction", "data", "model", "revision", "prompts", "allow_unknown_prompts", "artifacts", "output"}
)


def essence(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of an identity that the bytes of the result depend on."""
    essential = {}
    for name, value in identity.items():
        if name not in INESSENTIAL:
            essential[name] = essence(value) if isinstance(value, Mapping) else value
    return essential


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options of two identities that differ."""
    for name in sorted({*saved, *current}):
        saved_value, current_value = saved.get(name), current.get(name)
        if isinstance(saved_value, Mapping) and isinstance(current_value, Mapping):
            yield from differences(saved_value, current_value)
        elif saved_value != current_value:
            yield f"{name}: {json.dumps(saved_value)} there, {json.dumps(current_value)} now"


def is_run(path: Path) -> bool:
    """Return whether a directory is a run of d4m-fast, by the head of its config.

    Raises:
        PreflightError: it cannot be told.
    """
    try:
        with files.open_regular(path / "config.json") as file:
            return CONFIG.heads(file.read(HEAD_BYTES))
    except OSError as error:
        files.refuse_machine_error(path / "config.json", error)
        return False


def options_of(run: Path) -> dict[str, Any]:
    """Return the options that a run was begun with; none if the directory is no run of d4m-fast, or not there.

    Raises:
        DamageError: they are not what was written.
    """
    options: dict[str, Any] = require_state(run / "config.json", CONFIG)["options"] if is_run(run) else {}
    return options


def require_finished(path: Path) -> None:
    """Refuse a run that is not finished; a directory that is no run of d4m-fast is let through.

    Raises:
        RunDirectoryError: something is left to do.
    """
    if options_of(path) and not (path / "summary.json").is_file():
        raise RunDirectoryError(f"{path}: this run is not finished; d4m-fast verify prints the command that goes on")


def source_of(run: Path) -> str | None:
    """Return the `--data` that a run was made from; None if the directory is no run of d4m-fast."""
    return options_of(run).get("data")


def artifacts_of(run: Path) -> Path | None:
    """Return where a run's latents and indexes are kept; None if it is no run of d4m-fast, or was made elsewhere."""
    path = Path(require_state(run / "config.json", CONFIG)["artifacts"]) if is_run(run) else None
    return path if path is not None and os.access(path, os.W_OK) else None
