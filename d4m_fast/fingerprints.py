"""SHA-256 of values: their identity, and the random streams that are drawn for them."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON: equal values have equal fingerprints, on any machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def derive_seed(*path: object) -> int:
    """Return the first 63 bits of SHA-256("seed/class id/index/stage"), of whatever path: one random stream each."""
    digest = hashlib.sha256("/".join(map(str, path)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # PyTorch's generators take signed 64-bit seeds
