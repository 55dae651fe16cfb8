"""What is fixed before a run starts, and never probed again: groups, batches and threads."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ENCODE_BATCH = 32
GENERATE_BATCH = 50
MAX_GROUP = 20  # classes; bounds what is redone after an interruption and how much waits for a commit


@dataclass(frozen=True, slots=True)
class Group:
    """Classes that are generated and committed together."""

    id: int
    classes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """With the seeds and the config, what fixes the bytes of a run on one backend."""

    encode_batch: int
    batch_size: int
    threads: int
    groups: tuple[Group, ...]

    def without(self, done: Container[int]) -> list[Group]:
        """The groups that are not done yet."""
        return [group for group in self.groups if group.id not in done]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        groups = tuple(Group(g["id"], tuple(g["classes"])) for g in value["groups"])
        return cls(value["encode_batch"], value["batch_size"], value["threads"], groups)


def make_plan(class_ids: Sequence[int], ipc: int, *, batch_size: int | None, threads: int) -> Plan:
    """Split the classes into groups whose images fill whole batches, as far as `MAX_GROUP` allows.

    Where it does not, or where there are few classes, batches become smaller rather than be padded.
    """
    most = GENERATE_BATCH if batch_size is None else batch_size
    size = min(math.lcm(ipc, most) // ipc, MAX_GROUP, len(class_ids))
    images = size * ipc
    batch = math.ceil(images / math.ceil(images / most))
    groups = (
        Group(i, tuple(class_ids[start : start + size])) for i, start in enumerate(range(0, len(class_ids), size))
    )
    return Plan(ENCODE_BATCH, batch, threads, tuple(groups))
