"""A profile against an older one: is anything slower than it may be?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d4m_fast.config.profile import ProfileConfig
from d4m_fast.errors import DataError
from d4m_fast.storage.state import read_json

Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Change:
    """Images per second now over those then."""

    stage: str
    engine: str
    batch: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Attributes:
    changes: of every row that both profiles have.
    missing, added: rows of the old one alone, and of the new one alone.
    lost: those of the missing that should have been measured now.
    differences: between the machines, or in what was profiled; ratios then say little of the program.
    """

    floor: float
    changes: tuple[Change, ...]
    missing: tuple[Key, ...]
    lost: tuple[Key, ...]
    added: tuple[Key, ...]
    differences: tuple[str, ...]

    @property
    def slower(self) -> tuple[Change, ...]:
        """Below the floor."""
        return tuple(change for change in self.changes if change.ratio < self.floor)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "slower": [asdict(change) for change in self.slower]}


def read_older(file: Path) -> dict[str, Any]:
    """Another profile's JSON.

    Raises:
        DataError: not such a file.
    """
    try:
        value = read_json(file)
        rates = _rates(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"--against {file}: cannot be read as a profile ({error!r}); make it with --json") from error
    if not rates:
        raise DataError(f"--against {file}: no rows in it; make it with d4m-fast profile --json")
    found: dict[str, Any] = value
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any], floor: float, request: ProfileConfig) -> Comparison:
    """Row by row, by stage, engine and batch; `request` is that of the new one.

    Raises:
        DataError: the two have no row in common.
    """
    then, now = _rates(old), _rates(new)
    changes = tuple(Change(*key, now[key] / then[key]) for key in now if key in then)
    if not changes:
        raise DataError("--against: the two profiles have no row in common (stage, engine and batch)")
    missing = tuple(key for key in then if key not in now)
    return Comparison(
        floor,
        changes,
        missing,
        tuple(key for key in missing if request.covers(*key)),
        tuple(key for key in now if key not in then),
        tuple(_differences(old, new)),
    )


def _rates(profile: Mapping[str, Any]) -> dict[Key, float]:
    return {
        (stage, record["engine"], int(record["batch"])): _positive(record["images_per_second"])
        for stage, records in profile["stages"].items()
        for record in records
    }


def _positive(rate: Any) -> float:
    if not float(rate) > 0:
        raise ValueError(f"{rate} images per second")
    return float(rate)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    pairs = [(name, old.get(name), new.get(name)) for name in ("model_sha256", "resolution", "precision")]
    then, now = old.get("machine", {}), new["machine"]
    pairs += [(name, then.get(name), now[name]) for name in now]
    for name, before, after in pairs:
        if before != after:
            yield f"{name}: {json.dumps(before)} then, {json.dumps(after)} now"
