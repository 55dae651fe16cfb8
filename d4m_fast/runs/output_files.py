"""Output directories on the disk: a run's images in another form, the record of their files, and whether all are there.

OUT/output.json is the record: of which run and with which options, then each file with its size and SHA-256. It is
written first, after every file that is done, and last with the mark that the output is complete.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from d4m_fast.errors import RunDirectoryError
from d4m_fast.runs.identity import differences
from d4m_fast.storage import files
from d4m_fast.storage.locks import LOCK_FILES
from d4m_fast.storage.state import OUTPUT, read_state, write_state

OUTPUTS = "outputs"  # folder of a run for the outputs that `distill` derives, each in a folder of its form's name
RECORD_FILE = "output.json"
FileSum = dict[str, Any]  # "bytes" and "sha256"


class SummedFile(io.RawIOBase):
    """A file to write to from the beginning to the end, whose bytes are counted and hashed on their way."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._count = 0
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._count

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._hash.update(data)
        size = memoryview(data).nbytes
        self._count += size
        return size

    @property
    def sum(self) -> FileSum:
        return {"bytes": self._count, "sha256": self._hash.hexdigest()}


class OutputDirectory:
    """An output on the disk, opened under its lock (`locks.locked`); `begin` writes first.

    Args:
        origin: of the output: its form, run and options; an output of another origin is refused.
        versions: of the libraries that its bytes depend on; one that is complete may be of others.

    Attributes:
        complete: whether the record says that all is there.
        files: size and SHA-256 of the files that the record has, by their names below the directory.

    Raises:
        RunDirectoryError: the directory holds another output, or something else.
        DamageError: its record is not what was written.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        self.path = path
        self.complete = False
        self.files: dict[str, FileSum] = {}
        self._origin = dict(origin)
        self._versions = dict(versions)
        record = read_state(path / RECORD_FILE, OUTPUT)
        if record is None:
            for entry in files.entries(path):
                if entry.name not in LOCK_FILES and not entry.name.startswith(files.TEMPORARY):
                    raise RunDirectoryError(
                        f"{path}: not empty and not an output of ours ({entry.name}); choose another --out"
                    )
            return
        changes = list(differences(record["origin"], self._origin))
        if not record["complete"]:
            changes += differences(record["versions"], self._versions)
        if changes:
            raise RunDirectoryError(
                f"{path}: holds another output ({'; '.join(changes)}); remove it or choose another --out"
            )
        self.complete, self.files = record["complete"], record["files"]

    def begin(self) -> None:
        """Record what will be made, without the files that are no longer there."""
        self.complete = False
        for name in [name for name in self.files if not self.is_present(name, self.files[name])]:
            del self.files[name]
        self._save()
        files.sweep(self.path)

    def is_present(self, name: str, expected: FileSum) -> bool:
        """Return whether a file is there with this size; its bytes were durable before it got its name."""
        try:
            status = os.stat(self.path / name)
        except OSError as error:
            files.refuse_machine_error(self.path / name, error)
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == expected["bytes"]

    def write(self, name: str, write: Callable[[BinaryIO], None], *, sync_name: bool = True) -> FileSum:
        """Write a file whole, durably, or not at all; returns its size and SHA-256, which `record` keeps.

        Args:
            write: is given the file.
            sync_name: as `storage.files.new_file` takes it.

        Raises:
            RunDirectoryError: another file has the name, which is not of this output.
            PreflightError: no space, no permission, a read-only file system.
        """
        path = self.path / name
        files.make_directory(path.parent)
        with files.new_file(path, sync_name=sync_name) as file:
            summed = SummedFile(file)
            write(cast(BinaryIO, summed))
            # A run that was killed between a file and its record left these very bytes; others are somebody's.
            if name not in self.files and files.is_there(path) and sum_of(path) != summed.sum:
                raise RunDirectoryError(f"{path}: is in the way, and not of this output; move it away")
        return summed.sum

    def record(self, name: str, file_sum: FileSum) -> None:
        """Record a file that is durable."""
        self.files[name] = file_sum
        self._save()

    def finish(self, images: int, images_in: str | None) -> None:
        """Mark the output complete.

        Args:
            images: their number.
            images_in: the recorded file whose rows name the images, where these are files of their own.
        """
        self.complete = True
        self._save(images=images, images_in=images_in)

    def _save(self, **facts: Any) -> None:
        record = {
            "origin": self._origin,
            "versions": self._versions,
            "complete": self.complete,
            **facts,
            "files": dict(sorted(self.files.items())),  # the same bytes, whichever of them was made last
        }
        write_state(self.path / RECORD_FILE, OUTPUT, record)


def sum_of(path: Path) -> FileSum | None:
    """Return size and SHA-256 of a file, -1 and nothing where it cannot be read as one; None where there is none."""
    try:
        with files.open_regular(path) as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            return {"bytes": stream.tell(), "sha256": sha256}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        files.refuse_machine_error(path, error)
        return {"bytes": -1, "sha256": ""}
