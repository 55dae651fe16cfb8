"""Is a run whole? Everything a re-run would trust against the checksum it was written with."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from d4m_fast.errors import DamageError, DataError, RunDirectoryError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.runs import exports, latents
from d4m_fast.runs.commit import files_of, read_of_run, read_record
from d4m_fast.runs.image_files import PILLOW_OF
from d4m_fast.runs.plan import Group, Plan
from d4m_fast.runs.run import essence
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked
from d4m_fast.storage.state import CONFIG, EVALUATION, PLAN, SUMMARY, read_state, require_state

_FOLDERS = ("images", "prototypes", "groups")
_OURS = re.compile(r"\d{5}\.(png|jpg|webp|safetensors|json)")

Problem = Literal["missing", "damaged", "foreign"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that is not as it should be, named below the run, or whole where it lies among the artifacts.

    Attributes:
        marks: files whose removal has the damaged one made again by a re-run.
    """

    file: str
    problem: Problem
    reason: str
    marks: tuple[str, ...] = ()


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
            makes exactly those groups again, and of damaged latents what says that they are there. Foreign files are
            named and left alone.

    Raises:
        DataError: no such directory.
        RunDirectoryError: not a run of ours, or in use.
        DamageError: `config.json` is not what was written; a run cannot be gone on with then.
    """
    if not os.path.isdir(run):
        raise DataError(f"{run}: no such run directory; give one that d4m-fast distill made")
    if not files.is_there(run / "config.json"):
        raise RunDirectoryError(f"{run}: not a run of ours (no config.json); give one that d4m-fast distill made")
    with locked(run, read_only=not repair):
        verdict = _Check(run, deep).verdict()
        return _repaired(verdict) if repair and verdict.findings else verdict


class _Check:
    """One look at a run directory, and at what of the artifacts it was made with."""

    def __init__(self, run: Path, deep: bool) -> None:
        self._run = run
        self._deep = deep
        self._identity = require_state(run / "config.json", CONFIG)
        self._fingerprint = fingerprint(essence(self._identity))
        self._finished = files.is_there(run / "summary.json")
        self._plan: Plan | None = None
        self._records: dict[int, dict[str, Any]] = {}
        self._images = 0

    def verdict(self) -> Verdict:
        findings = list(self._check_plan())
        for number in self._group_ids():
            findings += self._check_group(number)
        findings += [*self._check_derived(), *self._check_reports(), *self._foreign()]
        findings += [*self._check_latents(), *self._check_export()]
        groups = 0 if self._plan is None else len(self._plan.groups)
        return Verdict(self._run, groups, len(self._records), self._images, self._finished, tuple(findings))

    def _check_plan(self) -> Iterator[Finding]:
        try:
            saved = read_of_run(self._run / "plan.json", PLAN, self._fingerprint)
        except DamageError as error:
            yield _to_finish("plan.json", "damaged", error.reason, "plan.json")
            return
        if saved is not None:
            self._plan = Plan.from_json(saved)
        elif files.entries(self._run / "groups"):
            yield _to_finish("plan.json", "missing", "there are records of groups it should name")

    def _group_ids(self) -> list[int]:
        """Those of the plan, or of the records where the plan cannot be read."""
        if self._plan is not None:
            return [group.id for group in self._plan.groups]
        names = [path.stem for path in files.entries(self._run / "groups") if path.suffix == ".json"]
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{5}", name))

    def _check_group(self, number: int) -> Iterator[Finding]:
        name = f"groups/{number:05d}.json"
        try:
            record = read_record(self._run, number, self._fingerprint)
        except DamageError as error:
            yield _to_finish(name, "damaged", error.reason, name)
            return
        if record is None:
            if self._finished:
                yield _to_finish(name, "missing", "the run is marked finished")
            return
        if self._plan is not None and not self._is_planned(record, self._plan.groups[number]):
            yield _to_finish(name, "damaged", "its images are not those of the plan", name)
            return
        self._records[number] = record
        for row in files_of(record):
            reason = self._wrong_with(row)
            if reason is not None:
                yield _to_finish(row["file"], *reason, name)

    def _is_planned(self, record: dict[str, Any], group: Group) -> bool:
        images = [(row["class_id"], row["index"]) for row in record["images"]]
        return images == [(c, i) for c in group.classes for i in range(self._identity["options"]["ipc"])]

    def _wrong_with(self, row: dict[str, Any]) -> tuple[Problem, str] | None:
        """What is wrong with a file of a record; None if nothing is."""
        path = self._run / row["file"]
        is_image = path.suffix in PILLOW_OF
        try:
            data = files.read_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            return "missing", "its group's record names it"
        except OSError as error:
            return "damaged", _unreadable(path, error)
        self._images += is_image
        if len(data) != row["bytes"]:
            return "damaged", f"{len(data):,} bytes, {row['bytes']:,} recorded"
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            return "damaged", "its SHA-256 is another than recorded"
        if not (self._deep and is_image):
            return None
        reason = _undecodable(data, path.suffix, self._identity["options"]["image_size"])
        return None if reason is None else ("damaged", reason)

    def _check_derived(self) -> Iterator[Finding]:
        if not self._finished:
            return
        try:
            summary = read_of_run(self._run / "summary.json", SUMMARY, self._fingerprint)
        except DamageError as error:
            yield _to_finish("summary.json", "damaged", error.reason)
            return
        for name, sha256 in {} if summary is None else summary["sha256_of"].items():
            try:
                data = files.read_regular(self._run / name)
            except (FileNotFoundError, NotADirectoryError):
                yield _to_finish(name, "missing", "the run is marked finished")
            except OSError as error:
                yield _to_finish(name, "damaged", _unreadable(self._run / name, error))
            else:
                if hashlib.sha256(data).hexdigest() != sha256:
                    yield _to_finish(name, "damaged", "its SHA-256 is another than the summary says")

    def _check_reports(self) -> Iterator[Finding]:
        """What `evaluate` kept, and would print again."""
        for path in files.entries(self._run / "evaluation"):
            if path.suffix != ".json":
                continue
            name = path.relative_to(self._run).as_posix()
            try:
                read_state(path, EVALUATION)
            except DamageError as error:
                yield Finding(name, "damaged", error.reason, (name,))

    def _foreign(self) -> Iterator[Finding]:
        """Files among ours that no record names; in a run that is not finished they may be the next group's."""
        if self._plan is None:
            return
        named = {row["file"] for record in self._records.values() for row in files_of(record)}
        groups = self._plan.groups
        named |= {f"groups/{group.id:05d}.json" for group in groups}
        all_recorded = len(self._records) == len(groups)
        for path in sorted(f for folder in _FOLDERS for f in _below(self._run / folder)):
            name = path.relative_to(self._run).as_posix()
            leftover = path.name.startswith(files.TEMPORARY)
            ours = leftover or _OURS.fullmatch(path.name)
            if name not in named and (all_recorded or not ours):
                yield Finding(name, "foreign", "no record names it", (name,) if leftover else ())

    def _check_latents(self) -> Iterator[Finding]:
        """Those the run was made from, as far as they are still kept."""
        if self._plan is None or self._plan.latents is None:
            return
        root = Path(self._identity["artifacts"]) / "latents" / self._plan.latents
        marks = (str(root / latents.INDEX), str(root / latents.PROGRESS))
        for path, reason in latents.damaged_files(root):
            yield Finding(str(path), "damaged", reason, marks)

    def _check_export(self) -> Iterator[Finding]:
        """The exported networks the run was made with, as far as they are still kept."""
        if "artifact_sha256" not in self._identity:
            return
        sha256s = self._identity["model_sha256"], self._identity["artifact_sha256"]
        for path, reason in exports.damaged_files(Path(self._identity["artifacts"]), *sha256s):
            yield Finding(str(path), "damaged", reason)


def _to_finish(file: str, problem: Problem, reason: str, *marks: str) -> Finding:
    """A file of a run's own that is made again by a re-run once the marks of completion are gone."""
    return Finding(file, problem, reason, (*marks, "summary.json", "manifest.jsonl"))


def _below(folder: Path) -> Iterator[Path]:
    """What is no directory; a link is a file of its own here: where it leads is its owner's business."""
    for path in files.entries(folder):
        if not path.is_symlink() and path.is_dir():
            yield from _below(path)
        else:
            yield path


def _unreadable(path: Path, error: OSError) -> str:
    """Why a file is damaged that cannot be read: it is on a bad sector, or no file.

    Raises:
        PreflightError: it may be sound, as far as this process can tell.
    """
    if error.errno != errno.EIO:
        files.refuse_machine_error(path, error)
    return f"cannot be read ({error.strerror})"


def _undecodable(data: bytes, suffix: str, side: int) -> str | None:
    """Why an image is not whole, of its name's format and of this size; None if it is."""
    try:
        with Image.open(io.BytesIO(data), formats=[PILLOW_OF[suffix]]) as image:
            image.load()
            size = image.size
    except (OSError, ValueError, SyntaxError) as error:
        return f"cannot be decoded ({error})"
    return None if size == (side, side) else f"{size[0]} x {size[1]} pixels, not {side} x {side}"


def _repaired(verdict: Verdict) -> Verdict:
    """Take away the marks of completion of what is damaged; a re-run then does it again."""
    marks = dict.fromkeys(mark for finding in verdict.findings for mark in finding.marks)
    removed = [mark for mark in marks if os.path.lexists(verdict.run / mark)]
    for mark in removed:
        files.remove(verdict.run / mark)
    return replace(verdict, removed=tuple(removed))
