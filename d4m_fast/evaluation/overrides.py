"""Changes of a protocol's fields from the command line, which stand in its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from d4m_fast.errors import UsageError
from d4m_fast.evaluation.protocols import Protocol


def parse_override(text: str) -> tuple[str, str]:
    """Return name and value of `--override name=value`.

    Raises:
        UsageError: it has no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--override {text}: write it as field=value; evaluate --protocols lists the fields")
    return name.strip(), value.strip()


OVERRIDABLE: Mapping[str, type] = MappingProxyType(
    {
        "resolution": int,
        "epochs": int,
        "batch_size": int,
        "micro_batch": int,
        "bn_batch": int,
        "lr": float,
        "weight_decay": float,
        "lr_horizon": float,
        "temperature": float,
        "cutmix": float,
        "shift": int,
        "patches": int,
        "flip": float,
        "test_resize": int,
        "stored_epochs": int,
    }
)

MOST = 1e9
_BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "weight_decay": (0, MOST),
        "cutmix": (0, 1),
        "flip": (0, 1),
        "shift": (0, MOST),
        "patches": (1, 2),  # only halves are shuffled
        "lr_horizon": (1, MOST),  # beyond its end a cosine rises again
    }
)


def overridden(protocol: Protocol, overrides: Mapping[str, str]) -> Protocol:
    """Return a protocol with some fields changed, all of which stand in its name from then on.

    Raises:
        UsageError: there is no such field, or it cannot have this value.
    """
    changes = dict[str, Any]()
    for name, text in overrides.items():
        if name not in OVERRIDABLE:
            raise UsageError(f"--override {name}: no such field; these can be changed: {', '.join(OVERRIDABLE)}")
        changes[name] = _value_of(name, text)
    if not changes:
        return protocol
    label = ",".join(f"{name}={overrides[name]}" for name in sorted(overrides))
    changed = dataclasses.replace(protocol, **_implied(protocol, changes), name=f"{protocol.name}[{label}]")
    if changed.test_resize is not None and changed.test_resize < changed.resolution:
        least = f"smaller than the {changed.resolution} pixels cut out of it"
        raise UsageError(f"--override test_resize={changed.test_resize}: {least}")
    return changed


def _implied(protocol: Protocol, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes with those that follow from them: the same part of a test image, no labels that nobody reads."""
    implied = dict(changes)
    if "resolution" in changes and protocol.test_resize is not None:
        scaled = round(protocol.test_resize * changes["resolution"] / protocol.resolution)
        implied.setdefault("test_resize", scaled)
    if "epochs" in changes:
        implied.setdefault("stored_epochs", min(protocol.stored_epochs, changes["epochs"]))
    return implied


def _value_of(name: str, text: str) -> Any:
    kind = OVERRIDABLE[name]
    try:
        value = kind(text)
    except ValueError as error:
        raise UsageError(f"--override {name}={text}: not a number") from error
    low, high = _BOUNDS.get(name, (None, MOST))
    if not (value > 0 if low is None else value >= low) or not value <= high:
        bounds = f"above 0, at most {high:g}" if low is None else f"{low:g} to {high:g}"
        raise UsageError(f"--override {name}={text}: must be {bounds}")
    if name == "batch_size":
        return ((1, value),)
    return {"": value} if name in ("lr", "lr_horizon") else value
