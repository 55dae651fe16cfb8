"""Comparison of a profile with an older one: what became slower than it may be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d4m_fast.config.profile import ProfileConfig
from d4m_fast.errors import DataError
from d4m_fast.storage.state import read_json

Key = tuple[str, str, int]  # stage, engine, batch


@dataclass(frozen=True, slots=True)
class Change:
    """Images per second in the new profile, divided by those in the old one."""

    stage: str
    engine: str
    batch: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Changes of every row that both profiles have, and all that only one of them has.

    Attributes:
        floor: ratio of images per second below which a row is slower.
        missing, added: rows of the old profile alone, and of the new one alone.
        lost: those of the missing that the new profile was asked for.
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
        """Rows below the floor."""
        return tuple(change for change in self.changes if change.ratio < self.floor)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "slower": list(map(asdict, self.slower))}


def read_older(file: Path) -> dict[str, Any]:
    """Read another profile's JSON.

    Raises:
        DataError: not such a file.
    """
    try:
        profile: dict[str, Any] = read_json(file)
        rates = _rates(profile)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"--against {file}: cannot be read as a profile ({error!r}); make it with --json") from error
    if not rates:
        raise DataError(f"--against {file}: no rows in it; make it with d4m-fast profile --json")
    return profile


def compare(
    old_profile: Mapping[str, Any], new_profile: Mapping[str, Any], floor: float, request: ProfileConfig
) -> Comparison:
    """Compare row by row, by stage, engine and batch; `request` is that of the new profile.

    Raises:
        DataError: the two have no row in common.
    """
    old_rates, new_rates = _rates(old_profile), _rates(new_profile)
    changes, added = [], []
    for key, rate in new_rates.items():
        if key in old_rates:
            changes.append(Change(*key, rate / old_rates[key]))
        else:
            added.append(key)
    if not changes:
        raise DataError("--against: the two profiles have no row in common (stage, engine and batch)")
    missing = tuple(key for key in old_rates if key not in new_rates)
    lost = tuple(key for key in missing if request.covers(*key))
    differences = tuple(_differences(old_profile, new_profile))
    return Comparison(floor, tuple(changes), missing, lost, tuple(added), differences)


def _rates(profile: Mapping[str, Any]) -> dict[Key, float]:
    rates: dict[Key, float] = {}
    for stage, records in profile["stages"].items():
        for record in records:
            rate = record["images_per_second"]
            if not float(rate) > 0:  # NaN, too
                raise ValueError(f"{rate} images per second")
            rates[stage, record["engine"], int(record["batch"])] = float(rate)
    return rates


def _differences(old_profile: Mapping[str, Any], new_profile: Mapping[str, Any]) -> Iterator[str]:
    names = ("model_sha256", "resolution", "precision")
    facts = [(name, old_profile.get(name), new_profile.get(name)) for name in names]
    old_machine = old_profile.get("machine", {})
    facts += [(name, old_machine.get(name), value) for name, value in new_profile["machine"].items()]
    for name, before, after in facts:
        if before != after:
            yield f"{name}: {json.dumps(before)} then, {json.dumps(after)} now"
