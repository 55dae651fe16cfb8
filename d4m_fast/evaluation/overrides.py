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
    return dataclasses.replace(protocol, **changes, name=f"{protocol.name}[{label}]")


def _value_of(name: str, text: str) -> Any:
    kind = OVERRIDABLE[name]
    try:
        value = kind(text)
    except ValueError as error:
        raise UsageError(f"--override {name}={text}: not a number") from error
    may_be_zero = name in ("weight_decay", "cutmix", "shift", "flip")
    if not (0 <= value < 1e9 if may_be_zero else 0 < value < 1e9) or (name in ("cutmix", "flip") and value > 1):
        raise UsageError(f"--override {name}={text}: out of range")
    if name == "batch_size":
        return ((1, value),)
    return {"": value} if name in ("lr", "lr_horizon") else value
