"""Merge run directories that have parts of one run into one that has all of it."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from d4m_fast.errors import D4MError, DamageError, DataError, RunDirectoryError, UsageError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.runs.commit import files_of, is_of, read_of_run, read_record, write_record
from d4m_fast.runs.identity import differences, essence
from d4m_fast.runs.plan import Group, Plan
from d4m_fast.runs.run import RunDirectory
from d4m_fast.runs.shards import ShardRecord, combined
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked
from d4m_fast.storage.state import CONFIG, GROUP, PLAN, require_state

_MOST_NAMED = 10  # groups, in one line
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@dataclass(frozen=True)
class Part:
    """A run directory that has some groups of a run."""

    path: Path
    identity: Mapping[str, Any]
    plan: Plan

    @property
    def config(self) -> str:
        """The run's fingerprint."""
        return fingerprint(essence(self.identity))

    @classmethod
    def open(cls, path: Path) -> Part:
        """Read what a directory says of itself.

        Raises:
            DataError: it is no run directory.
            DamageError: its config or its plan is not what was written.
        """
        if not files.is_there(path / "config.json"):
            raise DataError(f"{path}: not a run of ours (no config.json); give runs that d4m-fast distill made")
        identity = require_state(path / "config.json", CONFIG)
        saved = read_of_run(path / "plan.json", PLAN, fingerprint(essence(identity)))
        if saved is None:
            raise PLAN.damage(path / "plan.json", "it is missing")
        return cls(path, identity, Plan.from_json(saved))

    def record(self, group: Group) -> dict[str, Any] | None:
        """Return the record of a group that is committed here."""
        record = read_record(self.path, group.id, self.config)
        return record if record is not None and is_of(record, group) else None

    def shard_records(self) -> Iterator[ShardRecord]:
        for file in sorted(self.path.glob("shard-*-of-*.json")):
            record = ShardRecord.read(file, self.config)
            if record is not None:
                yield record


def merge(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Bring the groups of several run directories together in `out`, and return the summary of the whole run.

    Files are linked where that can be done, else copied, after their bytes were compared with their records. What is in
    `out` already is kept, so that a merge that was broken off goes on.

    Raises:
        RunDirectoryError: they are parts of different runs, or `out` is another run's or in use.
        D4MError: groups are in none of them.
        DamageError: a file is not what was written.
    """
    parts = [Part.open(path) for path in paths]
    if out.absolute() in [path.absolute() for path in paths]:
        raise UsageError(f"--out {out}: is one of the runs to merge; choose another directory")
    for part in parts[1:]:
        _require_same(parts[0], part)
    plan = _common_plan(parts)
    owners = _owners(parts, plan)
    with locked(files.make_directory(out)):
        run = RunDirectory(out, parts[0].identity)
        summary = run.finished()
        if summary is not None:
            return summary
        run.begin()
        if run.saved_plan() is None:
            run.save_plan(plan)
        for group in plan.without(run.committed(plan)):
            _bring(owners[group.id], group, out)
            run.committed(plan).add(group.id)
        left_out, watch = combined(chain.from_iterable(part.shard_records() for part in parts))
        return run.finish(plan, left_out.failures, left_out.first_frames, watch)


def _require_same(first: Part, other: Part) -> None:
    """Refuse parts of different runs."""
    different = list(differences(essence(first.identity), essence(other.identity)))
    if different:
        text = "; ".join(different).replace(" there, ", f" in {first.path}, ").replace(" now", f" in {other.path}")
        raise RunDirectoryError(f"{other.path}: part of another run than {first.path} ({text})")
    for name in ("encode_batch", "threads"):
        values = getattr(first.plan, name), getattr(other.plan, name)
        if values[0] != values[1]:
            raise _other_plan(first, other, f"{name} {values[0]} and {values[1]}")
    if [group.classes for group in first.plan.groups] != [group.classes for group in other.plan.groups]:
        raise _other_plan(first, other, "other groups of classes")
    if not (first.plan.out_of_memory or other.plan.out_of_memory) and first.plan.groups != other.plan.groups:
        raise _other_plan(first, other, "other batches")


def _other_plan(first: Part, other: Part, difference: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"{other.path}: made by another plan than {first.path} ({difference}); give both the same --batch-size and"
        " --threads, or a copy of one plan.json before they start"
    )


def _common_plan(parts: Sequence[Part]) -> Plan:
    """Return the plan of all, with the batches that each group was really made with."""
    groups, out_of_memory = list(parts[0].plan.groups), list[dict[str, Any]]()
    for part in parts:
        out_of_memory += [entry for entry in part.plan.out_of_memory if entry not in out_of_memory]
        for group in part.plan.groups:
            record = part.record(group)
            if record is not None:
                groups[group.id] = replace(group, batch_size=record["batch_size"], decode_batch=record["decode_batch"])
    return replace(parts[0].plan, groups=tuple(groups), out_of_memory=tuple(out_of_memory))


def _owners(parts: Sequence[Part], plan: Plan) -> dict[int, Part]:
    """Return a part that has each group.

    Raises:
        D4MError: none has some of them.
    """
    owners = dict[int, Part]()
    for part in parts:
        for group in plan.groups:
            if group.id not in owners and part.record(group) is not None:
                owners[group.id] = part
    missing = plan.without(owners)
    if missing:
        names = ", ".join(f"{group.id} (classes {_span(group)})" for group in missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise D4MError(
            f"{len(missing)} of {len(plan.groups)} groups are in none of these runs: {names}{more}; finish the shards"
            " that have them, and merge again"
        )
    return owners


def _span(group: Group) -> str:
    first, last = group.classes[0], group.classes[-1]
    return str(first) if first == last else f"{first} to {last}"


def _bring(part: Part, group: Group, out: Path) -> None:
    """Link or copy a group's files, and commit it."""
    record = part.record(group)
    assert record is not None
    folders = set[Path]()
    for row in files_of(record):
        target = out / row["file"]
        folders.add(files.make_directory(target.parent))
        _bring_file(part.path / row["file"], target, row)
    for folder in (*sorted(folders), out / "images"):
        files.sync_directory(folder)
    write_record(out, part.config, record)


def _bring_file(source: Path, target: Path, row: Mapping[str, Any]) -> None:
    with GROUP.reading(source):
        data = files.read_regular(source)
    if len(data) != row["bytes"] or hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise DamageError(
            f"{source}: damaged (it is not what its record says); d4m-fast verify --repair of its run has it made again"
        )
    with files.refusing(target):
        target.unlink(missing_ok=True)  # half of a merge that was broken off
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            files.write_bytes(target, data, sync_name=False)
