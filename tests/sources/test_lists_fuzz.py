"""Pages, lists and labels of any bytes: a value or one line comes out, in time and little memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from d4m_fast.errors import D4MError, DataError
from d4m_fast.sources.ground_truth import classes_of_tiny, classes_of_validation
from d4m_fast.sources.parquet_schema import page_of
from d4m_fast.sources.tar_index import _label

PAGE = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': cat
---
"""
READERS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "README.md": (PAGE, lambda file: page_of(file.parent)),
    "LOC_val_solution.csv": (
        b"ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4\n",
        lambda file: classes_of_validation(file.parent),
    ),
    "val_annotations.txt": (b"val_0.JPEG\tn01443537\t0\t32\t44\t62\n", classes_of_tiny),
    "1.json": (b'{"label": 12, "x": [1, 2, {"a": 1e9}]}', lambda file: _label("json", file.read_bytes())),
}
SIGNS = b"{}[]:-!&*'\"\n 0z\0\xff,|>#%@`?"


def changed(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[place : place + 1] = bytes([rng.choice(SIGNS)])
        elif kind == 1:
            data[place:place] = bytes(rng.choices(SIGNS, k=rng.randint(1, 5)))
        elif kind == 2:
            del data[place : place + rng.randint(1, 9)]
        else:
            start = rng.randrange(len(data) + 1)
            data[place:place] = data[start : start + 20]
    return bytes(data)


def try_changes(folder: Path, name: str, seed: int, count: int) -> None:
    whole, read = READERS[name]
    rng, file = random.Random(seed), folder / name
    for _ in range(count):
        file.write_bytes(changed(whole, rng))
        try:
            read(file)
        except D4MError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_end_in_a_value_or_one_line(tmp_path: Path, name: str) -> None:
    try_changes(tmp_path, name, 0, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_bytes_end_so_too(tmp_path: Path, name: str) -> None:
    try_changes(tmp_path, name, 1, 100_000)


def test_a_page_of_aliases_to_aliases_is_refused_at_once(tmp_path: Path) -> None:
    """Thirty lines that stand for a billion names."""
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 31))]
    label = "dataset_info: {features: [{name: label, dtype: {class_label: {names: [*a30]}}}]}"
    (tmp_path / "README.md").write_text("---\n" + "\n".join([*lines, label]) + "\n---\n")
    started = time.monotonic()
    with pytest.raises(DataError, match="its header cannot be read"):
        page_of(tmp_path)
    assert time.monotonic() - started < 5
