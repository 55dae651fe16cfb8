"""Damaged files of every container: an RGB image or one line comes out, in time, and nothing on stderr."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_variants import variants
from own_time import own_seconds

from d4m_fast.errors import DataError
from d4m_fast.sources.decode import decode

SMALL = {name: variant.data for name, variant in variants().items() if "orientation" not in name}
LONGEST = 5.0  # seconds, of a machine that does other things besides


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """The file cut, with bits flipped, with bytes of its head replaced, or with a run of it overwritten."""
    data = np.frombuffer(whole, np.uint8).copy()
    kind = rng.integers(4)
    if kind == 0:
        return data[: rng.integers(1, len(data) + 1)].tobytes()
    if kind == 1:
        places = rng.integers(0, len(data), rng.integers(1, 6))
        data[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    elif kind == 2:
        places = rng.integers(0, min(len(data), 400), rng.integers(1, 9))
        data[places] = rng.integers(0, 256, len(places))
    else:
        first = rng.integers(0, len(data))
        data[first : first + rng.integers(1, 9)] = rng.choice([0, 255])
    return data.tobytes()


def try_damage(path: Path, seed: int, files: int) -> None:
    rng = np.random.default_rng(seed)
    for name, whole in SMALL.items():
        for _ in range(files):
            path.write_bytes(damaged(whole, rng))
            started = own_seconds()
            try:
                assert decode(path).mode == "RGB", name
            except DataError as error:
                assert str(error).startswith(f"{path}: "), name
                assert "\n" not in str(error), name
            assert own_seconds() - started < LONGEST, name


def test_damage_never_escapes_as_another_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    try_damage(tmp_path / "image.jpg", seed=0, files=8)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_much_damage_never_escapes_either(tmp_path: Path, capfd: pytest.CaptureFixture[str], seed: int) -> None:
    try_damage(tmp_path / "image.jpg", seed, files=60)
    assert capfd.readouterr() == ("", "")
