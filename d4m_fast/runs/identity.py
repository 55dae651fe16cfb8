"""What makes a run this run: the parts of its identity that its bytes depend on, and how two of them differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

# Parts of an identity that change no byte of a run: limits that it starts by, and the places of its inputs, which are
# identified by their hashes.
INESSENTIAL = frozenset(
    {"max_bad_fraction", "data", "model", "revision", "prompts", "allow_unknown_prompts", "artifacts"}
)


def essence(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of an identity that the bytes of the result depend on."""
    essential = {}
    for name, value in identity.items():
        if name not in INESSENTIAL:
            essential[name] = essence(value) if isinstance(value, Mapping) else value
    return essential


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options of two identities that differ."""
    for name in sorted({*saved, *current}):
        saved_value, current_value = saved.get(name), current.get(name)
        if isinstance(saved_value, Mapping) and isinstance(current_value, Mapping):
            yield from differences(saved_value, current_value)
        elif saved_value != current_value:
            yield f"{name}: {json.dumps(saved_value)} there, {json.dumps(current_value)} now"
