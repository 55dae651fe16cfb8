"""Shards of a run: parts of its groups that are made apart, on disks of their own if need be, and merged later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.runs.commit import read_of_run, write_of_run
from d4m_fast.runs.latents import Failure, LatentStore
from d4m_fast.runs.plan import Group, Plan
from d4m_fast.runs.run import RunDirectory
from d4m_fast.sources.records import Item
from d4m_fast.storage.state import SHARD


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a run's groups, neighbours in its plan; `number` counts from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def groups(self, plan: Plan) -> tuple[Group, ...]:
        """Return its groups; shards of one count have each group once, and differ by one in size."""
        total = len(plan.groups)
        return plan.groups[(self.number - 1) * total // self.count : self.number * total // self.count]

    def file(self, run: Path) -> Path:
        """Return the path of the record that says that it is done."""
        return run / f"shard-{self.number}-of-{self.count}.json"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Real images that were left out of some ranges of the source, and animated ones that gave their first frame.

    Attributes:
        by_range: "failures" and "first_frames" of each range, by its number; of the whole source under `WHOLE`.
    """

    WHOLE = "all"
    by_range: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, latents: LatentStore, ranges: Iterable[int]) -> LeftOut:
        """Return what was left out of these ranges, or of the whole source where that is encoded."""
        if latents.complete:
            failures = [_entry(failure) for failure in latents.failures]
            return cls({cls.WHOLE: {"failures": failures, "first_frames": latents.first_frames}})
        by_range = dict[str, dict[str, Any]]()
        for number in ranges:
            state = latents.state_of(number)
            by_range[str(number)] = {"failures": state.failures, "first_frames": state.first_frames}
        return cls(by_range)

    def merged(self, more: LeftOut) -> LeftOut:
        return LeftOut({**self.by_range, **more.by_range})

    @property
    def failures(self) -> list[Failure]:
        """The images left out, in the source's order."""
        failures = list[Failure]()
        for row in self._rows:
            for entry in row["failures"]:
                item = Item(entry["class_id"], entry["rank"], entry["origin"])
                failures.append(Failure(item, entry["reason"]))
        return failures

    @property
    def first_frames(self) -> int:
        return sum(row["first_frames"] for row in self._rows)

    @property
    def _rows(self) -> list[Mapping[str, Any]]:
        if self.WHOLE in self.by_range:
            return [self.by_range[self.WHOLE]]
        return [self.by_range[number] for number in sorted(self.by_range, key=int)]


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """Record of a shard that is done."""

    left_out: LeftOut
    seconds: Mapping[str, float]
    waits: Mapping[str, float]

    def write(self, run: Path, shard: Shard, config: str) -> None:
        fields = {"ranges": self.left_out.by_range, "seconds": self.seconds, "waits": self.waits}
        write_of_run(shard.file(run), SHARD, config, {**fields, "number": shard.number, "count": shard.count})

    @classmethod
    def read(cls, file: Path, config: str) -> ShardRecord | None:
        """Return what `write` wrote; None if the shard is not done.

        Raises:
            DamageError: it is not what was written, or belongs to another run.
        """
        fields = read_of_run(file, SHARD, config)
        if fields is None:
            return None
        return cls(LeftOut(fields["ranges"]), fields["seconds"], fields["waits"])


def all_records(run: Path, shard: Shard, config: str) -> list[ShardRecord]:
    """Return the records of the shards in a run directory that are done, of those that `shard` is one of."""
    shards = (Shard(number, shard.count) for number in range(1, shard.count + 1))
    records = (ShardRecord.read(each.file(run), config) for each in shards)
    return [record for record in records if record is not None]


def combined(records: Iterable[ShardRecord]) -> tuple[LeftOut, Stopwatch]:
    """Return what all shards left out, and their seconds together."""
    left_out, watch = LeftOut({}), Stopwatch()
    for record in records:
        left_out = left_out.merged(record.left_out)
        watch.add(record.seconds, record.waits)
    return left_out, watch


def shard_summary(run: RunDirectory, shard: Shard, plan: Plan, record: ShardRecord) -> dict[str, Any]:
    """Return the summary of a shard that is done, of a run that may not be."""
    committed, classes = run.committed(plan), sum(len(group.classes) for group in shard.groups(plan))
    return {
        "run": str(run.path),
        "shard": str(shard),
        "groups": len(shard.groups(plan)),
        "groups_of_run": len(plan.groups),
        "groups_committed": len(plan.groups) - len(plan.without(committed)),
        "classes": classes,
        "quarantined": len(record.left_out.failures),
        "first_frames": record.left_out.first_frames,
        "seconds": {stage: round(seconds, 3) for stage, seconds in record.seconds.items()},
        "waits": {queue: round(seconds, 3) for queue, seconds in record.waits.items()},
    }


def _entry(failure: Failure) -> dict[str, Any]:
    item = failure.item
    return {"class_id": item.class_id, "rank": item.rank, "origin": item.origin, "reason": failure.reason}
