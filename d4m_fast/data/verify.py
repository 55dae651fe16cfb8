"""Is a run whole? Every committed file against its record, and the derived files against the records."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from d4m_fast.config import fingerprint
from d4m_fast.data import files
from d4m_fast.data.image_files import PILLOW_OF
from d4m_fast.data.locks import locked
from d4m_fast.data.plan import Plan
from d4m_fast.data.run import essence
from d4m_fast.errors import DamageError, DataError, RunDirectoryError

DERIVED = ("manifest.jsonl", "quarantine.jsonl", "preview.png", "summary.json")
_FOLDERS = ("images", "prototypes", "groups")
_OURS = re.compile(r"\d{5}\.(png|jpg|webp|safetensors|json)")

Problem = Literal["missing", "damaged", "foreign"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that is not as it should be; `group` is the one to make again, None where no group is to blame."""

    file: str
    problem: Problem
    reason: str
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found.

    Attributes:
        groups, committed: of the plan, and those with a record.
        images: how many were compared with their record.
        removed: files that `repair` took away.
    """

    run: Path
    groups: int
    committed: int
    images: int
    finished: bool
    findings: tuple[Finding, ...]
    removed: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return self.finished and not self.findings

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "run": str(self.run),
            "whole": self.whole,
            "findings": [asdict(finding) for finding in self.findings],
            "removed": list(self.removed),
        }


def verify(run: Path, *, deep: bool = False, repair: bool = False) -> Verdict:
    """Compare a run with its records, under its lock.

    Args:
        deep: decode every image and check its size, too.
        repair: remove the records of damaged groups and the derived files, so that the command the run was made with
            makes exactly those groups again. Foreign files are named and left alone.

    Raises:
        DataError: no such directory.
        RunDirectoryError: not a run of ours, or in use.
        DamageError: `config.json` or `plan.json` cannot be read; a run cannot be gone on with then.
    """
    if not run.is_dir():
        raise DataError(f"{run}: no such run directory; give one that d4m-fast distill made")
    if not (run / "config.json").is_file():
        raise RunDirectoryError(f"{run}: not a run of ours (no config.json); give one that d4m-fast distill made")
    with locked(run, read_only=not repair):
        verdict = _Check(run, deep).verdict()
        return _repaired(verdict) if repair and verdict.findings else verdict


class _Check:
    """One look at a run directory."""

    def __init__(self, run: Path, deep: bool) -> None:
        self._run = run
        self._deep = deep
        identity = files.read_json(run / "config.json")
        try:
            self._fingerprint = fingerprint(essence(identity))
            self._ipc = int(identity["options"]["ipc"])
            self._side = int(identity["options"]["image_size"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DamageError(f"{run}/config.json: damaged ({error!r}); start a new run in another --out") from error
        self._plan = _plan(run)
        self._records: dict[int, dict[str, Any]] = {}
        self._findings: list[Finding] = []
        self._images = 0

    def verdict(self) -> Verdict:
        for group in () if self._plan is None else self._plan.groups:
            self._findings += self._check_group(group.id, group.classes)
        finished = (self._run / "summary.json").is_file()
        if finished:
            self._findings += self._check_derived()
        self._findings += self._foreign()
        if self._plan is None and any((self._run / "groups").glob("*")):
            self._findings.append(Finding("plan.json", "missing", "there are records of groups it should name"))
        total = 0 if self._plan is None else len(self._plan.groups)
        return Verdict(self._run, total, len(self._records), self._images, finished, tuple(self._findings))

    def _check_group(self, number: int, classes: Sequence[int]) -> Iterator[Finding]:
        name = f"groups/{number:05d}.json"
        if not (self._run / name).is_file():
            if (self._run / "summary.json").is_file():
                yield Finding(name, "missing", "the run is marked finished", number)
            return
        try:
            record = files.read_json(self._run / name)
            rows = _rows(record, number, classes, self._ipc, self._fingerprint)
        except (DamageError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield Finding(name, "damaged", f"not a record of this run's ({error})", number)
            return
        self._records[number] = record
        yield from (finding for row in rows if (finding := self._check_file(row, number)) is not None)

    def _check_file(self, row: dict[str, Any], group: int) -> Finding | None:
        path = self._run / row["file"]
        if not path.is_file():
            return Finding(row["file"], "missing", "its group's record names it", group)
        try:
            data = path.read_bytes()
        except OSError as error:
            return Finding(row["file"], "damaged", f"cannot be read ({error.strerror})", group)
        self._images += path.suffix in PILLOW_OF
        if len(data) != row["bytes"]:
            return Finding(row["file"], "damaged", f"{len(data):,} bytes, {row['bytes']:,} recorded", group)
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            return Finding(row["file"], "damaged", "its SHA-256 is another than recorded", group)
        reason = _undecodable(path, self._side) if self._deep and path.suffix in PILLOW_OF else None
        return None if reason is None else Finding(row["file"], "damaged", reason, group)

    def _check_derived(self) -> Iterator[Finding]:
        for name in DERIVED:
            if not (self._run / name).is_file():
                yield Finding(name, "missing", "the run is marked finished")
        rows = [row for number in sorted(self._records) for row in self._records[number]["images"]]
        manifest = self._run / "manifest.jsonl"
        if manifest.is_file() and _bytes_of(manifest) != files.json_lines(rows):
            yield Finding("manifest.jsonl", "damaged", "not what the groups' records say")
        preview = self._run / "preview.png"
        if self._deep and preview.is_file() and (reason := _undecodable(preview, None)) is not None:
            yield Finding("preview.png", "damaged", reason)

    def _foreign(self) -> Iterator[Finding]:
        """Files among ours that no record names; in a run that is not finished they may be the next group's."""
        if self._plan is None:
            return
        named = {row["file"] for r in self._records.values() for row in (*r["images"], *r.get("prototypes", ()))}
        groups = self._plan.groups
        named |= {f"groups/{group.id:05d}.json" for group in groups}
        all_recorded = len(self._records) == len(groups)
        for path in sorted(f for folder in _FOLDERS for f in (self._run / folder).rglob("*") if not f.is_dir()):
            name = path.relative_to(self._run).as_posix()
            ours = path.name.startswith(files.TEMPORARY) or _OURS.fullmatch(path.name)
            if name not in named and (all_recorded or not ours):
                yield Finding(name, "foreign", "no record names it")


def _plan(run: Path) -> Plan | None:
    """None: the run was stopped before it had one."""
    if not (run / "plan.json").exists():
        return None
    try:
        return Plan.from_json(files.read_json(run / "plan.json"))
    except (KeyError, TypeError) as error:
        raise DamageError(f"{run}/plan.json: damaged ({error!r}); start a new run in another --out") from error


def _rows(record: dict[str, Any], number: int, classes: Sequence[int], ipc: int, config: str) -> list[dict[str, Any]]:
    """The files of a record that is what it should be.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not.
    """
    images, prototypes = list(record["images"]), list(record.get("prototypes", ()))
    if record["group"] != number or record["config"] != config:
        raise ValueError("of another group or another config")
    if [(row["class_id"], row["index"]) for row in images] != [(c, i) for c in classes for i in range(ipc)]:
        raise ValueError("its images are not those of the plan")
    rows = [*images, *prototypes]
    if any(Path(row["file"]).is_absolute() or ".." in Path(row["file"]).parts for row in rows):
        raise ValueError("it names files outside the run")
    return [{"file": str(row["file"]), "bytes": int(row["bytes"]), "sha256": row["sha256"]} for row in rows]


def _bytes_of(file: Path) -> bytes | None:
    """None: it cannot be read."""
    try:
        return file.read_bytes()
    except OSError:
        return None


def _undecodable(path: Path, side: int | None) -> str | None:
    """Why an image is not whole, of its name's format and of this size; None if it is."""
    try:
        with Image.open(path, formats=[PILLOW_OF[path.suffix]]) as image:
            image.load()
            size = image.size
    except (OSError, ValueError, SyntaxError) as error:
        return f"cannot be decoded ({error})"
    return None if side is None or size == (side, side) else f"{size[0]} x {size[1]} pixels, not {side} x {side}"


def _repaired(verdict: Verdict) -> Verdict:
    """Take away the marks of completion of what is damaged; a re-run then does it again."""
    groups = sorted({f.group for f in verdict.findings if f.group is not None})
    derived = [f.file for f in verdict.findings if f.group is None and f.problem != "foreign"]
    marks = ["summary.json", "manifest.jsonl"] if groups or derived else []
    names = [*marks, *(f"groups/{g:05d}.json" for g in groups)]
    leftovers = [f.file for f in verdict.findings if Path(f.file).name.startswith(files.TEMPORARY)]
    removed = [name for name in (*names, *leftovers) if (verdict.run / name).exists()]
    for name in removed:
        files.remove(verdict.run / name)
    return replace(verdict, removed=tuple(removed))
