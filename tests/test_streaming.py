"""Memory: latents are held for one group of classes at a time, however many stream by."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from driving import Ran, write_photos

from d4m_fast import generation
from d4m_fast.runs.latents import LatentStore

GROUPS = 8


@pytest.mark.parametrize("classes", [1, 3])
def test_only_one_group_of_classes_latents_is_alive(
    distill: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    loaded: list[weakref.ref[np.ndarray]] = []
    most, load = 0, LatentStore.load

    def watched(self: LatentStore, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal most
        ranks, rows = load(self, class_id)
        rows = rows.copy()  # an array that owns its memory: as long as any view of it lives, it lives
        loaded.append(weakref.ref(rows))
        most = max(most, sum(ref() is not None for ref in loaded))
        return ranks, rows

    data = write_photos(tmp_path / "data", [f"class {i}" for i in range(GROUPS)], 3)
    monkeypatch.setattr(LatentStore, "load", watched)
    monkeypatch.setattr(LatentStore, "bytes_of", lambda self, class_id: 1)
    monkeypatch.setattr(generation, "GROUP_BYTES", classes)
    assert distill("--data", data, "--ipc", 1, "--batch-size", 1).code == 0
    assert len(list((tmp_path / "run" / "groups").iterdir())) == len(loaded) == GROUPS
    assert most == classes
