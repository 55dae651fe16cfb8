"""Files of leases: their names, their content, and what an observer reads off them at a look."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from d4m_fast.storage import files
from d4m_fast.storage.processes import MachineProcess, is_dead

LEASE_FILE = re.compile(r"(?P<unit>.+)\.lease-(?P<number>\d{4,})")
LEASE_BYTES = 1024  # of a file, always the same: a beat then needs no new block of the disk
_REASON_CHARACTERS = 300  # of an error's message that fit into a file, escaped as they may be


class Phase(enum.StrEnum):
    """Step of a holder with its unit."""

    WAITING = "waiting"  # held for later: if its holder ends now, that is not this unit's fault
    WORKING = "working"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Content of a lease's file."""

    holder: MachineProcess
    token: str
    phase: Phase = Phase.WAITING
    beat: int = 0
    reason: str = ""

    def to_bytes(self) -> bytes:
        """Return JSON, with blanks behind it up to `LEASE_BYTES`."""
        text = json.dumps({**asdict(self), "reason": self.reason[:_REASON_CHARACTERS]})
        if len(text) >= LEASE_BYTES:  # of escapes: the rest says who holds it, and must be there
            text = json.dumps({**asdict(self), "reason": ""})
        return text.ljust(LEASE_BYTES - 1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> LeaseRecord | None:
        """Return what `to_bytes` wrote; None where its writer was cut off, or is writing now."""
        try:
            value = json.loads(data)
            holder = MachineProcess(**value.pop("holder"))
            return cls(holder, value["token"], Phase(value["phase"]), int(value["beat"]), str(value["reason"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def highest_numbers(names: Iterable[str]) -> dict[str, int]:
    """Return the number that holds each unit that has a lease, from the names of a directory's files."""
    numbers = dict[str, int]()
    for name in names:
        match = LEASE_FILE.fullmatch(name)
        if match is not None:
            numbers[match["unit"]] = max(numbers.get(match["unit"], 0), int(match["number"]))
    return numbers


def failures(folder: Path, unit: str, number: int) -> list[str]:
    """Return why each try of a unit failed, the earliest first; nobody may be working on it now.

    Args:
        number: of its last lease.
    """
    reasons = list[str]()
    for earlier in range(1, number + 1):
        record = read_record(lease_file(folder, unit, earlier))
        if record is None:
            continue
        if record.phase == Phase.FAILED:
            reasons.append(record.reason)
        elif record.phase == Phase.WORKING:
            reasons.append(f"process {record.holder.pid} on {record.holder.host} ended or hung")
    return reasons


def holders(folder: Path) -> dict[str, LeaseRecord | None]:
    """Return the lease of each unit in a folder that somebody, as far as can be told at a look, holds."""
    records = dict[str, LeaseRecord | None]()
    for unit, number in highest_numbers(path.name for path in files.entries(folder)).items():
        record = read_record(lease_file(folder, unit, number))
        if not is_ended(record):
            records[unit] = record
    return records


def lease_file(folder: Path, unit: str, number: int) -> Path:
    return folder / f"{unit}.lease-{number:04d}"


def read_lease(path: Path) -> bytes:
    """Return the bytes of a lease; none where it is gone, or cannot be read now."""
    try:
        return files.read_regular(path)
    except OSError:
        return b""


def read_record(path: Path) -> LeaseRecord | None:
    return LeaseRecord.from_bytes(read_lease(path))


def is_ended(record: LeaseRecord | None) -> bool:
    """Return whether a lease was given back, or its holder is known to have ended."""
    return record is not None and (record.phase == Phase.FAILED or is_dead(record.holder))
