"""Indexes of large files, kept so that a file is indexed once; one that was changed since is indexed anew."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d4m_fast.sources.positioned import State
from d4m_fast.storage import files
from d4m_fast.storage.state import INDEX, read_state, write_state


@dataclass(frozen=True, slots=True)
class IndexCache:
    """A directory of indexes, each in a state file that is named after the path of what it is of.

    Attributes:
        root: None keeps nothing.
        form: of the indexes; those of another one are made anew.
    """

    root: Path | None
    form: str

    def load(self, path: Path, state: State) -> dict[str, Any] | None:
        """Return the fields that `save` wrote for a file in this state; None where there are none.

        Raises:
            DamageError: they are not what was written.
        """
        if self.root is None:
            return None
        fields = read_state(self.file(path, ".json"), INDEX)
        return None if fields is None or fields["of"] != self._key(path, state) else fields

    def save(self, path: Path, state: State, fields: Mapping[str, Any]) -> None:
        """Keep the index of a file.

        Raises:
            PreflightError: it cannot be written.
        """
        if self.root is not None:
            files.make_directory(self.root)
            write_state(self.file(path, ".json"), INDEX, {"of": self._key(path, state), **fields})

    def file(self, path: Path, suffix: str) -> Path:
        """Return where something of a file is kept."""
        assert self.root is not None
        return self.root / (hashlib.sha256(_absolute(path).encode()).hexdigest()[:16] + suffix)

    def _key(self, path: Path, state: State) -> list[Any]:
        return [self.form, _absolute(path), *state]


def pack(numbers: np.ndarray) -> str:
    """Return whole numbers as text."""
    return base64.b64encode(np.asarray(numbers, "<i8").tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    """Return the numbers that `pack` packed, (n,) int64."""
    return np.frombuffer(binascii.a2b_base64(text), "<i8").astype(np.int64)


def _absolute(path: Path) -> str:
    return os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")
