"""Plans of runs: groups, batches and threads, which are fixed before a run starts and never probed again."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from d4m_fast.errors import OutOfMemoryError

ENCODE_BATCH = 32
GENERATE_BATCH = 50
MAX_GROUP = 20  # classes; bounds what is redone after an interruption and how much waits for a commit


@dataclass(frozen=True, slots=True)
class Batches:
    """Images per call of VAE encoder, UNet and VAE decoder, at most; `why` gives the reason of each."""

    encode: int = ENCODE_BATCH
    generate: int = GENERATE_BATCH
    decode: int = GENERATE_BATCH
    why: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Classes that are generated and committed together, and the images per call of UNet and decoder."""

    id: int
    classes: tuple[int, ...]
    batch_size: int
    decode_batch: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan of a run; with the seeds and the config it determines the bytes of the run on one backend.

    Attributes:
        why: the reason of each batch size (an option, a default, the memory or a probe) and its figures.
        out_of_memory: batches that did not fit after all, and from which group on they were made smaller.
        latents: name of the folder of latents that it is for, below the artifacts.
    """

    encode_batch: int
    threads: int
    groups: tuple[Group, ...]
    why: dict[str, Any]
    out_of_memory: tuple[dict[str, Any], ...] = ()
    latents: str | None = None

    def without(self, committed: Container[int]) -> list[Group]:
        """Return the groups that are not committed yet."""
        return [group for group in self.groups if group.id not in committed]

    def with_smaller_batch(self, error: OutOfMemoryError, committed: Container[int], at: Group | None = None) -> Plan:
        """Return the same plan with half the batch that did not fit, in the groups that are not committed.

        Where the plan has become smaller since, for another process ran out of memory, it is returned as it is.

        Args:
            at: the group that was worked on, as it was planned then; None is the first that is not committed.

        Raises:
            OutOfMemoryError: that batch was one image.
        """
        first = self.without(committed)[0] if at is None else at
        name = "decode_batch" if error.stage == "decode" else "batch_size"
        size = getattr(first, name)
        if size == 1:
            raise error.for_one_image()
        if getattr(self.groups[first.id], name) < size:
            return self
        entry = {"stage": error.stage, "group": first.id, name: size, "now": size // 2, "error": error.reason}
        groups = list(self.groups)
        for place, group in enumerate(groups):
            if group.id not in committed:
                groups[place] = _limit(group, name, size // 2)
        return replace(self, groups=tuple(groups), out_of_memory=(*self.out_of_memory, entry))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """Return the plan that `to_json` wrote."""
        groups = []
        for entry in value["groups"]:
            groups.append(Group(entry["id"], tuple(entry["classes"]), entry["batch_size"], entry["decode_batch"]))
        failures = tuple(value["out_of_memory"])
        return cls(value["encode_batch"], value["threads"], tuple(groups), value["why"], failures, value["latents"])


def make_plan(class_ids: Sequence[int], ipc: int, batches: Batches, *, threads: int) -> Plan:
    """Split the classes into groups whose images fill whole batches, as far as `MAX_GROUP` allows.

    Where it does not, or where there are few classes, batches become smaller rather than padded.
    """
    # The smallest number of classes whose images are a multiple of the batch.
    classes_per_group = min(math.lcm(ipc, batches.generate) // ipc, MAX_GROUP, len(class_ids))
    generate_batch = _even_part(classes_per_group * ipc, batches.generate)
    decode_batch = _even_part(generate_batch, batches.decode)
    groups: list[Group] = []
    for start in range(0, len(class_ids), classes_per_group):
        classes = tuple(class_ids[start : start + classes_per_group])
        groups.append(Group(len(groups), classes, generate_batch, decode_batch))
    return Plan(batches.encode, threads, tuple(groups), batches.why)


def _even_part(total: int, limit: int) -> int:
    """Return the size of equal parts of a total, as few parts as a limit on their size allows."""
    return math.ceil(total / math.ceil(total / limit))


def _limit(group: Group, name: str, limit: int) -> Group:
    """Return a group with one of its batches limited; the decoder's is never larger than the UNet's."""
    batch_size = min(group.batch_size, limit) if name == "batch_size" else group.batch_size
    return replace(group, batch_size=batch_size, decode_batch=min(group.decode_batch, batch_size, limit))
