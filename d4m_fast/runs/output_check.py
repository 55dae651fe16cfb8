"""Checks of output directories: every file compared with the record, and the command that makes what is missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from d4m_fast.errors import DamageError
from d4m_fast.runs.output_files import OUTPUTS, RECORD_FILE, FileSum, sum_of
from d4m_fast.storage import files
from d4m_fast.storage.locks import LOCK_FILES
from d4m_fast.storage.state import HEAD_BYTES, OUTPUT, read_state

Problem = Literal["missing", "damaged", "foreign"]


@dataclass(frozen=True, slots=True)
class OutputProblem:
    """A file of an output that is not as recorded.

    Attributes:
        is_replaceable: whether `convert` makes exactly this file again once it is removed.
    """

    path: Path
    kind: Problem
    reason: str
    is_replaceable: bool


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """Result of comparing an output with its record.

    Attributes:
        images: number of images that the output holds, 0 where its record cannot be read or is not complete.
        flags: of `d4m-fast convert`, with which it was begun.
    """

    path: Path
    complete: bool
    images: int
    problems: tuple[OutputProblem, ...]
    flags: str

    @property
    def whole(self) -> bool:
        return self.complete and not self.problems

    def command(self, run: str) -> str:
        """Return the command that makes what is missing, of a run's path as a shell takes it."""
        return f"d4m-fast convert {run} {self.flags}".rstrip()


def is_output(path: Path) -> bool:
    """Return whether a directory is an output of ours, by the head of its record.

    Raises:
        PreflightError: it cannot be told.
    """
    try:
        with files.open_regular(path / RECORD_FILE) as file:
            return OUTPUT.heads(file.read(HEAD_BYTES))
    except OSError as error:
        files.refuse_machine_error(path / RECORD_FILE, error)
        return False


def outputs_of(run: Path) -> Iterator[Path]:
    """Yield the outputs that were derived in a run, finished or not; an empty folder is none."""
    for folder in files.entries(run / OUTPUTS):
        if any(entry.name not in LOCK_FILES for entry in files.entries(folder)):
            yield folder


def check_output(path: Path, manifest_sha256: str | None = None) -> OutputCheck:
    """Compare an output with its record.

    Args:
        manifest_sha256: of the run that it lies in; None where it lies alone.
    """
    place = f"--out {shlex.quote(str(path))}"
    try:
        record = read_state(path / RECORD_FILE, OUTPUT)
    except DamageError as error:
        problem = _whole_problem(path, "damaged", error.reason)
        return OutputCheck(path, False, 0, (problem,), f"--to {path.name} {place}")
    if record is None:
        problem = _whole_problem(path, "missing", "an output has its record there")
        return OutputCheck(path, False, 0, (problem,), f"--to {path.name} {place}")
    flags = " ".join((*_flags(record["origin"]), place))
    if manifest_sha256 not in (None, record["origin"]["manifest_sha256"]):
        problem = _whole_problem(path, "damaged", "it is of other images than the run has now")
        return OutputCheck(path, False, 0, (problem,), flags)
    problems = tuple(_problems(path, record)) if record["complete"] else ()
    return OutputCheck(path, record["complete"], record.get("images", 0), problems, flags)


def _whole_problem(path: Path, kind: Problem, reason: str) -> OutputProblem:
    """Return the problem of an output that can only be made anew."""
    return OutputProblem(path / RECORD_FILE, kind, f"{reason}; remove {path} and convert again", False)


def _flags(origin: Mapping[str, Any]) -> Iterator[str]:
    yield f"--to {origin['form']}"
    for name, value in origin["options"].items():
        if value is not None:
            yield f"--{name.replace('_', '-')} {shlex.quote(str(value))}"


def _problems(path: Path, record: Mapping[str, Any]) -> Iterator[OutputProblem]:
    sums: dict[str, FileSum] = dict(record["files"])
    for name, recorded in record["files"].items():
        yield from _problem(path / name, recorded)
    listing = record["images_in"]
    if listing is not None:
        if sum_of(path / listing) != sums[listing]:
            return  # which images there should be is not known then
        for line in files.read_regular(path / listing).splitlines():
            row = json.loads(line)
            sums[row["file"]] = row
            yield from _problem(path / row["file"], row)
    own = {*sums, RECORD_FILE, *LOCK_FILES}
    for file in files.files_below(path):
        if file.relative_to(path).as_posix() not in own:
            yield OutputProblem(file, "foreign", "no record names it", file.name.startswith(files.TEMPORARY))


def _problem(path: Path, recorded: Mapping[str, Any]) -> Iterator[OutputProblem]:
    present = sum_of(path)
    if present is None:
        yield OutputProblem(path, "missing", "the output's record names it", True)
    elif present["bytes"] != recorded["bytes"]:
        yield OutputProblem(path, "damaged", f"{present['bytes']:,} bytes, {recorded['bytes']:,} recorded", True)
    elif present["sha256"] != recorded["sha256"]:
        yield OutputProblem(path, "damaged", "its SHA-256 is another than recorded", True)
