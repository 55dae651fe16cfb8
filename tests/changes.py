"""Small changes to files, as disks, memory and hands make them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Change = Callable[[Path, random.Random], bool]
"""Changes a file in place, or removes it; False where this kind of change cannot be made to it."""


def flip_bit(file: Path, rng: random.Random) -> bool:
    return _at_random(file, rng, lambda byte: byte ^ 1 << rng.randrange(8))


def change_byte(file: Path, rng: random.Random) -> bool:
    return _at_random(file, rng, lambda byte: (byte + rng.randrange(1, 256)) % 256)


def _at_random(file: Path, rng: random.Random, changed: Callable[[int], int]) -> bool:
    data = bytearray(file.read_bytes())
    if not data:
        return False
    place = rng.randrange(len(data))
    data[place] = changed(data[place])
    file.write_bytes(data)
    return True


def change_digit(file: Path, rng: random.Random) -> bool:
    data = bytearray(file.read_bytes())
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    if not places or file.suffix not in (".json", ".jsonl"):
        return False
    place = rng.choice(places)
    data[place] = ord(rng.choice([d for d in "0123456789" if ord(d) != data[place]]))
    file.write_bytes(data)
    return True


def truncate(file: Path, rng: random.Random) -> bool:
    data = file.read_bytes()
    if not data:
        return False
    file.write_bytes(data[: rng.randrange(len(data))])
    return True


def swap_records(file: Path, rng: random.Random) -> bool:
    """Two entries of a list of JSON, two lines, two rows of an array, or two files of one folder."""
    before = file.read_bytes()
    if file.suffix == ".json":
        value = json.loads(before)
        lists = [found for found in _lists(value) if len(found) > 1]
        if not lists:
            return False
        _swap(rng.choice(lists), rng)
        file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif file.suffix == ".jsonl":
        lines = before.splitlines(keepends=True)
        if len(lines) < 2:
            return False
        _swap(lines, rng)
        file.write_bytes(b"".join(lines))
    elif file.suffix == ".npy":
        rows = np.load(file)
        first, second = rng.sample(range(len(rows)), 2)
        rows[[first, second]] = rows[[second, first]]
        np.save(file, rows)
    else:
        others = [other for other in sorted(file.parent.iterdir()) if other.is_file() and other != file]
        if not others:
            return False
        file.write_bytes(rng.choice(others).read_bytes())
    return file.read_bytes() != before


def delete(file: Path, rng: random.Random) -> bool:
    file.unlink()
    return True


def _lists(value: Any) -> Iterator[list[Any]]:
    if isinstance(value, list):
        yield value
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in below:
        yield from _lists(part)


def _swap(entries: list[Any], rng: random.Random) -> None:
    first, second = rng.sample(range(len(entries)), 2)
    entries[first], entries[second] = entries[second], entries[first]


CHANGES: dict[str, Change] = {
    "bit": flip_bit,
    "byte": change_byte,
    "digit": change_digit,
    "truncation": truncate,
    "swap": swap_records,
    "deletion": delete,
}
