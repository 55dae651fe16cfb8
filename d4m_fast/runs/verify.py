"""Verify that a run is whole: compare all that a re-run would trust with the checksums it was written with."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from PIL import Image

from d4m_fast.errors import DamageError, RunDirectoryError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.runs import exports, latent_checks
from d4m_fast.runs.commit import files_of, read_of_run, read_record
from d4m_fast.runs.identity import essence
from d4m_fast.runs.image_files import PILLOW_OF
from d4m_fast.runs.output_check import OutputCheck, Problem, check_output, outputs_of
from d4m_fast.runs.plan import Plan
from d4m_fast.runs.reading import require_run
from d4m_fast.storage import files
from d4m_fast.storage.lease_files import LEASE_FILE, holders
from d4m_fast.storage.locks import locked
from d4m_fast.storage.state import (
    CONFIG,
    EVALUATION,
    LABELS,
    PLAN,
    SHARD,
    STUDENT,
    SUMMARY,
    Schema,
    read_state,
    require_state,
)

_FOLDERS = ("images", "prototypes", "groups")
_OWN_NAME = re.compile(r"\d{5}\.(png|jpg|webp|safetensors|json)")
_LEASES = "groups"


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that is not as it should be, named below the run, or with its whole path where it is an artifact.

    Attributes:
        marks: files whose removal has the damaged one made again by a re-run.
    """

    file: str
    problem: Problem
    reason: str
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of a verification.

    Attributes:
        groups: number of groups in the plan.
        committed: number of groups with a record.
        images: number of images that were compared with their record.
        commands: those that make outputs again of which something is missing, in a shell's words.
        removed: files that `repair` removed.
    """

    run: Path
    groups: int
    committed: int
    images: int
    finished: bool
    findings: tuple[Finding, ...]
    commands: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return self.finished and not self.findings and not self.commands

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "run": str(self.run),
            "whole": self.whole,
            "findings": list(map(asdict, self.findings)),
            "commands": list(self.commands),
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
    require_run(run)
    with locked(run, read_only=not repair):
        if repair:
            _require_unused(run)
        verdict = _Check(run, deep).verdict()
        return _repaired(verdict) if repair and verdict.findings else verdict


def _require_unused(run: Path) -> None:
    """Refuse to take marks of completion from under a process that works on the run."""
    for unit, lease in holders(run / "groups").items():
        who = "another process" if lease is None else f"process {lease.holder.pid} on {lease.holder.host}"
        raise RunDirectoryError(
            f"{run}: in use by {who}, which holds group {int(unit)}; wait for it, or, if it is no more, run d4m-fast"
            " distill on it first, which takes over"
        )


class _Check:
    """Check of a run directory, and of the artifacts that it was made from."""

    def __init__(self, run: Path, deep: bool) -> None:
        self._run = run
        self._deep = deep
        self._identity = require_state(run / "config.json", CONFIG)
        self._fingerprint = fingerprint(essence(self._identity))
        self._finished = files.is_there(run / "summary.json")
        self._plan: Plan | None = None
        self._records: dict[int, dict[str, Any]] = {}
        self._images = 0
        self._manifest_sha256: str | None = None  # by the summary, where there is one that can be read

    def verdict(self) -> Verdict:
        findings = list(self._check_plan())
        for number in self._group_ids():
            findings += self._check_group(number)
        findings += [*self._check_derived(), *self._check_shards(), *self._check_reports(), *self._foreign_files()]
        findings += [*self._check_latents(), *self._check_export()]
        commands = []
        for check in self._check_outputs():
            findings += _output_findings(check, self._run)
            if not check.whole:
                commands.append(check.command(shlex.quote(str(self._run))))
        groups = 0 if self._plan is None else len(self._plan.groups)
        counts = groups, len(self._records), self._images
        return Verdict(self._run, *counts, self._finished, tuple(findings), tuple(commands))

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
        """Return the groups of the plan, or of the records where the plan cannot be read."""
        if self._plan is not None:
            return [group.id for group in self._plan.groups]
        names = [path.name for path in files.entries(self._run / "groups")]  # sorted
        return [int(name[:5]) for name in names if re.fullmatch("[0-9]{5}[.]json", name)]

    def _check_group(self, number: int) -> Iterator[Finding]:
        name = f"groups/{number:05d}.json"
        try:
            record = read_record(self._run, number, self._fingerprint)
        except DamageError as error:
            yield _to_finish(name, "damaged", error.reason, name)
            return
        if record is None:  # a run that is not finished has groups that are not made yet
            if self._finished:
                yield _to_finish(name, "missing", "the run is marked finished")
            return
        if self._plan is not None and _names_of(record) != list(self._planned(number, record)):
            yield _to_finish(name, "damaged", "its images are not those of the plan", name)
            return
        self._records[number] = record
        for row in files_of(record):
            problem = self._problem(row)
            if problem is not None:
                yield _to_finish(row["file"], *problem, name)

    def _planned(self, number: int, record: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
        """Yield class and index of each image that a group should have, by what its record says of small classes."""
        assert self._plan is not None
        options = self._identity["options"]
        few = {row["class_id"]: row["class_images"] for row in record["images"] if "class_images" in row}
        for class_id in self._plan.groups[number].classes:
            is_fewer = options.get("small_classes") == "fewer" and class_id in few
            yield from product([class_id], range(few[class_id] if is_fewer else options["ipc"]))

    def _problem(self, row: dict[str, Any]) -> tuple[Problem, str] | None:
        """Return the problem of a file of a record, and the reason; None if there is none."""
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
        checksums = {} if summary is None else summary["sha256_of"]
        self._manifest_sha256 = checksums.get("manifest.jsonl")
        for name, sha256 in checksums.items():
            try:
                data = files.read_regular(self._run / name)
            except (FileNotFoundError, NotADirectoryError):
                yield _to_finish(name, "missing", "the run is marked finished")
            except OSError as error:
                yield _to_finish(name, "damaged", _unreadable(self._run / name, error))
            else:
                if hashlib.sha256(data).hexdigest() != sha256:
                    yield _to_finish(name, "damaged", "its SHA-256 is another than the summary says")

    def _check_shards(self) -> Iterator[Finding]:
        for path in sorted(self._run.glob("shard-*-of-*.json")):
            try:
                read_of_run(path, SHARD, self._fingerprint)
            except DamageError as error:
                yield _to_finish(path.name, "damaged", error.reason, path.name)

    def _check_reports(self) -> Iterator[Finding]:
        """Check what `evaluate` saved and would take again: results, finished students, stored labels."""
        for path, schema in self._evaluated():
            name = path.relative_to(self._run).as_posix()
            try:
                state = read_state(path, schema)
            except DamageError as error:
                yield Finding(name, "damaged", error.reason, (name,))
            else:
                yield from self._check_labels(path, {} if state is None else state.get("files", {}))

    def _evaluated(self) -> Iterator[tuple[Path, Schema]]:
        """Yield the state files of evaluations; one that may not be listed is an error, as `Path.glob` has it not."""
        folder = self._run / "evaluation"
        for path in files.entries(folder):
            if path.suffix == ".json":
                yield path, EVALUATION
        for name, file, schema in (("students", "result.json", STUDENT), ("labels", "index.json", LABELS)):
            for place in files.entries(folder / name):
                yield place / file, schema

    def _check_labels(self, index: Path, sums: Mapping[str, str]) -> Iterator[Finding]:
        """Check the files of stored labels; without their index they are all made again."""
        marks = (index.relative_to(self._run).as_posix(),)
        for file, sha256 in sums.items():
            path = index.parent / file
            name = path.relative_to(self._run).as_posix()
            if not files.is_there(path):
                yield Finding(name, "missing", "", marks)
            elif hashlib.sha256(files.read_regular(path)).hexdigest() != sha256:
                yield Finding(name, "damaged", "its SHA-256 is another than the index says", (name, *marks))

    def _foreign_files(self) -> Iterator[Finding]:
        """Yield files that no record names; before all groups have records, they may be those of the next."""
        if self._plan is None:
            return
        recorded_names = {f"groups/{group.id:05d}.json" for group in self._plan.groups}
        for record in self._records.values():
            recorded_names.update(row["file"] for row in files_of(record))
        is_all_recorded = len(self._records) == len(self._plan.groups)
        for path in sorted(chain.from_iterable(files.files_below(self._run / folder) for folder in _FOLDERS)):
            name = path.relative_to(self._run).as_posix()
            is_leftover = path.name.startswith(files.TEMPORARY)
            if path.parent.name == _LEASES and LEASE_FILE.fullmatch(path.name):
                continue  # of a process that works on the run now, or that ended: it says nothing about what is done
            is_own = is_leftover or _OWN_NAME.fullmatch(path.name)
            if name not in recorded_names and (is_all_recorded or not is_own):
                yield Finding(name, "foreign", "no record names it", (name,) if is_leftover else ())

    def _check_latents(self) -> Iterator[Finding]:
        """Check the latents that the run was made from, as far as they are still there."""
        if self._plan is None or self._plan.latents is None:
            return
        root = Path(self._identity["artifacts"]) / "latents" / self._plan.latents
        for path, reason, marks in latent_checks.damaged_files(root):
            yield Finding(str(path), "damaged", reason, tuple(map(str, marks)))

    def _check_export(self) -> Iterator[Finding]:
        """Check the exported networks that the run was made with, as far as they are still there."""
        if "artifact_sha256" not in self._identity:
            return
        sha256s = self._identity["model_sha256"], self._identity["artifact_sha256"]
        for path, reason in exports.damaged_files(Path(self._identity["artifacts"]), *sha256s):
            yield Finding(str(path), "damaged", reason)

    def _check_outputs(self) -> Iterator[OutputCheck]:
        """Check the outputs that were derived from the run and lie in it."""
        for path in outputs_of(self._run):
            yield check_output(path, self._manifest_sha256)


def verify_output(path: Path, *, repair: bool = False) -> Verdict:
    """Compare an output directory with its record, under its lock.

    Args:
        repair: remove what is damaged, so that the command it was made with makes exactly that again.
    """
    with locked(path, read_only=not repair):
        check = check_output(path)
        commands = () if check.whole else (check.command("RUN"),)
        verdict = Verdict(path, 0, 0, check.images, check.complete, tuple(_output_findings(check, path)), commands)
        return _repaired(verdict) if repair and verdict.findings else verdict


def _output_findings(check: OutputCheck, root: Path) -> Iterator[Finding]:
    """Yield the problems of an output, whose damaged files are their own marks: without them they are made again."""
    for problem in check.problems:
        name = problem.path.relative_to(root).as_posix()
        yield Finding(name, problem.kind, problem.reason, (name,) if problem.is_replaceable else ())


def _names_of(record: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return class and index of each image in a group's record."""
    return [(row["class_id"], row["index"]) for row in record["images"]]


def _to_finish(file: str, problem: Problem, reason: str, *marks: str) -> Finding:
    """Return the finding of a run's own file, which a re-run makes again once the marks of completion are gone."""
    return Finding(file, problem, reason, (*marks, "summary.json", "manifest.jsonl"))


def _unreadable(path: Path, error: OSError) -> str:
    """Say why a file that cannot be read is damaged: it is on a bad sector, or is no regular file.

    Raises:
        PreflightError: it may be sound, as far as this process can tell.
    """
    if error.errno != errno.EIO:
        files.refuse_machine_error(path, error)
    return f"cannot be read ({error.strerror})"


def _undecodable(data: bytes, suffix: str, side: int) -> str | None:
    """Say why an image is not whole, of its name's format and of this size; None if it is."""
    try:
        with Image.open(io.BytesIO(data), formats=[PILLOW_OF[suffix]]) as image:
            image.load()
            size = image.size
    # What Pillow raises on damaged files of the formats that runs are written in.
    except (OSError, ValueError, SyntaxError) as error:
        return f"cannot be decoded ({error})"
    return None if size == (side, side) else f"{size[0]} x {size[1]} pixels, not {side} x {side}"


def _repaired(verdict: Verdict) -> Verdict:
    """Remove the marks of completion of damaged files, so that a re-run makes them again."""
    marks = dict.fromkeys(chain.from_iterable(finding.marks for finding in verdict.findings))
    removed = [mark for mark in marks if os.path.lexists(verdict.run / mark)]
    for mark in removed:
        files.remove(verdict.run / mark)
    return replace(verdict, removed=tuple(removed))
