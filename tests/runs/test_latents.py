from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d4m_fast.errors import DamageError, DataError, OutOfMemoryError
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs import latents as module
from d4m_fast.runs.latent_files import LatentFiles
from d4m_fast.runs.latents import EncodedBatch, Failure, LatentStore
from d4m_fast.sources.records import Item
from d4m_fast.storage.state import LATENTS, require_state

SHAPE = (2, 3, 3)
MADE_BY: dict[str, Any] = {"model": "m", "batch": 4}
ITEMS = [Item(c, rank, f"{c}/{rank}") for c, count in ((0, 5), (7, 4)) for rank in range(count)]


def latent(item: Item) -> np.ndarray:
    """Numbers that say whose they are, exact in half precision."""
    return np.arange(18, dtype=np.float32).reshape(SHAPE) + 100 * item.class_id + 20 * item.rank


def batches(items: list[Item], bad: set[str] | None = None, size: int = 4) -> Stream[EncodedBatch]:
    def made() -> Iterator[EncodedBatch]:
        for start in range(0, len(items), size):
            good = [i for i in items[start : start + size] if i.origin not in (bad or ())]
            failed = [i for i in items[start : start + size] if i not in good]
            rows = np.stack([latent(i) for i in good]) if good else np.zeros((0, *SHAPE), np.float32)
            yield EncodedBatch(good, rows, [Failure(i, f"{i.origin}: broken") for i in failed])

    return Stream(-(-len(items) // size), made())


def fill(store: LatentStore, made: Stream[EncodedBatch], stop_after: int | None = None) -> int:
    """How many batches came out; the block ends there as it does at an error."""
    with Workers(Stopwatch()) as workers:
        return len(list(islice(store.fill(made, workers), stop_after)))


def filled(path: Path, items: list[Item], bad: set[str] | None = None) -> LatentStore:
    store = LatentStore(path, MADE_BY, items, SHAPE)
    assert fill(store, batches(items, bad)) == -(-len(items) // 4)
    return store


def assert_right(store: LatentStore, class_id: int, ranks: list[int]) -> None:
    found, rows = store.load(class_id)
    assert rows.dtype == np.float16
    assert found.tolist() == ranks
    for rank, row in zip(found, rows, strict=True):
        np.testing.assert_array_equal(row, latent(Item(class_id, int(rank), "")))


@pytest.mark.parametrize("seed", range(3))
def test_rows_land_by_rank_in_any_source_order(tmp_path: Path, seed: int) -> None:
    shuffled = random.Random(seed).sample(ITEMS, len(ITEMS))
    store = filled(tmp_path, shuffled)
    assert_right(store, 0, [0, 1, 2, 3, 4])
    assert_right(store, 7, [0, 1, 2, 3])


def test_files_are_plain_numpy(tmp_path: Path) -> None:
    store = filled(tmp_path, ITEMS)
    np.testing.assert_array_equal(np.load(tmp_path / "00007.npy"), store.load(7)[1])


def test_damaged_images_are_left_out(tmp_path: Path) -> None:
    store = filled(tmp_path, ITEMS, bad={"0/1", "7/3"})
    assert_right(store, 0, [0, 2, 3, 4])
    assert_right(store, 7, [0, 1, 2])
    assert [store.usable(0), store.usable(7)] == [4, 3]
    assert [f.item for f in LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE).failures] == [ITEMS[1], ITEMS[8]]
    store.check_budget(2 / 9)
    with pytest.raises(DataError, match=r"2 of 9 images cannot be used.*0/1: broken"):
        store.check_budget(0.2)


def test_a_batch_of_damaged_images_only(tmp_path: Path) -> None:
    store = filled(tmp_path, ITEMS, bad={"0/0", "0/1", "0/2", "0/3"})
    assert_right(store, 0, [4])


def broken_off(made: Stream[EncodedBatch], after: int, error: BaseException) -> Stream[EncodedBatch]:
    def items() -> Iterator[EncodedBatch]:
        yield from islice(made, after)
        raise error

    return Stream(len(made), items())


def test_an_interrupted_pass_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1.0)
    first = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    with pytest.raises(DataError, match="enough"):
        fill(first, broken_off(batches(ITEMS, bad={"0/1"}), 2, DataError("enough")))
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert (again.complete, again.position, len(again.failures)) == (False, 8, 1)
    fill(again, batches(ITEMS[8:]))
    assert_right(again, 0, [0, 2, 3, 4])
    assert_right(again, 7, [0, 1, 2, 3])
    assert not (tmp_path / "progress.json").exists()


def test_without_a_checkpoint_it_starts_again(tmp_path: Path) -> None:
    assert fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), batches(ITEMS), stop_after=1) == 1
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert (again.complete, again.position) == (False, 0)


def test_crash_between_the_last_checkpoint_and_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(LatentStore, "_finish", crash)
        filled(tmp_path, ITEMS)
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert (again.complete, again.position) == (False, len(ITEMS))
    assert fill(again, batches([])) == 0
    assert again.complete
    assert_right(again, 7, [0, 1, 2, 3])


@pytest.mark.parametrize("damage", ["zero", "bit", "cut"])
def test_rows_changed_after_a_checkpoint_are_found_when_the_pass_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1.0)
    assert fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), batches(ITEMS), stop_after=1) == 1
    file, row = tmp_path / "00000.npy", 2 * 18
    data = bytearray(file.read_bytes())
    if damage == "zero":
        data[-4 * row : -3 * row] = bytes(row)
    elif damage == "bit":
        data[-4 * row] ^= 1
    file.write_bytes(data[:-1] if damage == "cut" else data)
    with pytest.raises(DamageError, match=r"00000\.npy: damaged"):
        LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)


def test_rows_written_after_the_last_checkpoint_are_nobody_s_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that was killed may have written more than it says; an image may be damaged by now."""
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1.0)
    assert fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), batches(ITEMS), stop_after=1) == 1
    LatentFiles.from_json(tmp_path, require_state(tmp_path / "progress.json", LATENTS)).write(
        7, 3, np.ones((1, *SHAPE), np.float16)
    )
    store = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    fill(store, batches(ITEMS[store.position :], bad={"7/3"}))
    assert_right(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), 7, [0, 1, 2])


def test_out_of_memory_halves_the_batch_and_is_kept_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1.0)
    store = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    error = OutOfMemoryError("encode", "no room")
    with pytest.raises(OutOfMemoryError):
        fill(store, broken_off(batches(ITEMS), 1, error))
    assert (store.position, store.batch) == (4, 4)
    store.halve_batch(error)
    assert store.batch == 2
    fill(store, batches(ITEMS[4:], size=2))
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert (again.complete, again.batch) == (True, 2)
    assert_right(again, 0, [0, 1, 2, 3, 4])
    assert_right(again, 7, [0, 1, 2, 3])
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["out_of_memory"] == [{"position": 4, "batch": 4, "now": 2, "error": "no room"}]
    again.halve_batch(error)
    with pytest.raises(OutOfMemoryError, match="not even one image fits"):
        again.halve_batch(error)


def test_half_written_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-index.json").write_text("{")
    filled(tmp_path, ITEMS)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["00000.npy", "00007.npy", "index.json"]


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    store, file = filled(tmp_path, ITEMS), tmp_path / "00000.npy"
    content = file.read_bytes()
    changed = {"flip": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:-1]}
    file.unlink()
    if damage in changed:
        file.write_bytes(changed[damage])
    with pytest.raises(DamageError, match=r"00000\.npy: damaged"):
        store.load(0)
    assert_right(store, 7, [0, 1, 2, 3])


def test_latents_made_by_something_else_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, ITEMS)
    with pytest.raises(DamageError, match="made by something else"):
        LatentStore(tmp_path, {**MADE_BY, "model": "other"}, ITEMS, SHAPE)


def test_an_unfinished_store_loads_nothing(tmp_path: Path) -> None:
    with pytest.raises(DamageError):
        LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE).load(0)


def test_a_position_does_not_outlive_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is lost, and what opens the rest next is killed before its first checkpoint."""
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1.0)
    store = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    fill(store, batches(ITEMS), stop_after=2)
    assert LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE).position > 0
    (tmp_path / "00007.npy").unlink()
    assert [LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE).position for _ in range(2)] == [0, 0]
