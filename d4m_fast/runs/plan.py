"""What is fixed before a run starts, and never probed again: groups, batches and threads."""

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
    """Images per call of the VAE encoder, of the UNet and of the VAE decoder, at most; `why` says who chose each."""

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
    """With the seeds and the config, what fixes the bytes of a run on one backend.

    Attributes:
        why: of each batch size, what chose it: an option, a default, the memory or a probe, and its figures.
        out_of_memory: what did not fit after all, and from which group on it was made smaller.
        latents: name of the folder of latents that it is for, below the artifacts.
    """

    encode_batch: int
    threads: int
    groups: tuple[Group, ...]
    why: dict[str, Any]
    out_of_memory: tuple[dict[str, Any], ...] = ()
    latents: str | None = None

    def without(self, done: Container[int]) -> list[Group]:
        """The groups that are not done yet."""
        return [group for group in self.groups if group.id not in done]

    def with_smaller_batch(self, error: OutOfMemoryError, done: Container[int]) -> Plan:
        """The same plan with half the batch that did not fit, in the groups that are not done.

        Raises:
            OutOfMemoryError: that batch was one image.
        """
        first = self.without(done)[0]
        name = "decode_batch" if error.stage == "decode" else "batch_size"
        was = getattr(first, name)
        if was == 1:
            raise error.for_one_image()
        entry = {"stage": error.stage, "group": first.id, name: was, "now": was // 2, "error": error.reason}
        return replace(
            self,
            groups=tuple(g if g.id in done else _smaller(g, name, was // 2) for g in self.groups),
            out_of_memory=(*self.out_of_memory, entry),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        groups = (Group(g["id"], tuple(g["classes"]), g["batch_size"], g["decode_batch"]) for g in value["groups"])
        failures = tuple(value["out_of_memory"])
        return cls(value["encode_batch"], value["threads"], tuple(groups), value["why"], failures, value["latents"])


def make_plan(class_ids: Sequence[int], ipc: int, batches: Batches, *, threads: int) -> Plan:
    """Split the classes into groups whose images fill whole batches, as far as `MAX_GROUP` allows.

    Where it does not, or where there are few classes, batches become smaller rather than be padded.
    """
    size = min(math.lcm(ipc, batches.generate) // ipc, MAX_GROUP, len(class_ids))
    batch = _even(size * ipc, batches.generate)
    decode = _even(batch, batches.decode)
    groups = (
        Group(i, tuple(class_ids[start : start + size]), batch, decode)
        for i, start in enumerate(range(0, len(class_ids), size))
    )
    return Plan(batches.encode, threads, tuple(groups), batches.why)


def _even(total: int, most: int) -> int:
    """The size of equal parts of a total, as few as `most` allows."""
    return math.ceil(total / math.ceil(total / most))


def _smaller(group: Group, name: str, most: int) -> Group:
    batch = min(group.batch_size, most) if name == "batch_size" else group.batch_size
    return replace(group, batch_size=batch, decode_batch=min(group.decode_batch, batch, most))
