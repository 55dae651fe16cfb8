from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d4m_fast.errors import DamageError, DataError, OutOfMemoryError
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs import latents as module
from d4m_fast.runs import ranges
from d4m_fast.runs.latent_checks import damaged_files
from d4m_fast.runs.latent_files import LatentFiles
from d4m_fast.runs.latents import EncodedBatch, Failure, LatentStore, folder_name
from d4m_fast.runs.ranges import OwnRanges
from d4m_fast.sources.records import Item

SHAPE = (2, 3, 3)
MADE_BY: dict[str, Any] = {"model": "m", "batch": 4}
ITEMS = [Item(c, rank, f"{c}/{rank}") for c, count in ((0, 5), (7, 4)) for rank in range(count)]


def latent(item: Item) -> np.ndarray:
    """Numbers that say whose they are, exact in half precision."""
    return np.arange(18, dtype=np.float32).reshape(SHAPE) + 100 * item.class_id + 20 * item.rank


def batch_of(store_items: list[Item], start: int, stop: int, bad: set[str] = frozenset()) -> EncodedBatch:  # type: ignore[assignment]
    good = [i for i in store_items[start:stop] if i.origin not in bad]
    failed = [i for i in store_items[start:stop] if i not in good]
    rows = np.stack([latent(i) for i in good]) if good else np.zeros((0, *SHAPE), np.float32)
    return EncodedBatch(good, rows, [Failure(i, f"{i.origin}: broken") for i in failed], first=start)


class Enough(DataError):
    """As many batches as were asked for."""


def fill(
    store: LatentStore,
    items: list[Item],
    bad: set[str] | None = None,
    *,
    stop_after: int | None = None,
    error: BaseException | None = None,
) -> list[int]:
    """Positions of the batches that came out; after as many as that comes an error, or the block just ends."""
    claims = OwnRanges(store.missing)

    def made() -> Iterator[EncodedBatch]:
        for count, (start, stop) in enumerate(store.spans(claims)):
            if count == stop_after:
                raise Enough if error is None else error
            yield batch_of(items, start, stop, bad or set())

    positions = list[int]()
    with Workers(Stopwatch()) as workers, contextlib.suppress(Enough):
        for batch in store.fill(Stream(len(items), made()), workers, claims):
            positions.append(batch.first)
    return positions


def filled(path: Path, items: list[Item], bad: set[str] | None = None) -> LatentStore:
    store = LatentStore(path, MADE_BY, items, SHAPE)
    assert fill(store, items, bad) == list(range(0, len(items), 4))
    store.finish()
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


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch each, and a checkpoint after each batch of larger ones."""
    monkeypatch.setattr(ranges, "RANGE_BATCHES", 1)


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1.0)


def test_an_interrupted_pass_goes_on_from_its_checkpoint(tmp_path: Path, checkpoints: None) -> None:
    first = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    with pytest.raises(DataError, match="enough"):
        fill(first, ITEMS, {"0/1"}, stop_after=2, error=DataError("enough"))
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert (again.complete, again.missing) == (False, [0])
    assert fill(again, ITEMS, {"0/1"}) == [8]
    again.finish()
    assert [f.item for f in again.failures] == [ITEMS[1]]
    assert_right(again, 0, [0, 2, 3, 4])
    assert_right(again, 7, [0, 1, 2, 3])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["00000.npy", "00007.npy", "index.json"]


def test_an_interrupted_pass_goes_on_after_the_ranges_that_are_done(tmp_path: Path, small_ranges: None) -> None:
    assert fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), ITEMS, {"0/1"}, stop_after=2) == [0, 4]
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert (again.complete, again.missing, len(again.failures)) == (False, [2], 1)
    assert fill(again, ITEMS) == [8]
    again.finish()
    assert LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE).usable(0) == 4
    assert_right(again, 7, [0, 1, 2, 3])


def test_without_a_checkpoint_it_starts_again(tmp_path: Path) -> None:
    assert fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), ITEMS, stop_after=1) == [0]
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert (again.complete, fill(again, ITEMS)) == (False, [0, 4, 8])


def test_two_processes_share_the_ranges_of_one_store(tmp_path: Path, small_ranges: None) -> None:
    """Each has a store of its own on the same files; either writes the index, and it has the rows of both."""
    one, two = (LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE) for _ in range(2))
    one_claims, two_claims = OwnRanges([0, 2]), OwnRanges([1])
    with Workers(Stopwatch()) as workers:
        for store, claims in ((one, one_claims), (two, two_claims)):
            made = (batch_of(ITEMS, *span, {"0/1", "7/2"}) for span in store.spans(claims))
            list(store.fill(Stream(3, made), workers, claims))
    two.finish()
    one.finish()
    assert (one.complete, two.complete) == (True, True)
    for store in (one, two, LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)):
        assert_right(store, 0, [0, 2, 3, 4])
        assert_right(store, 7, [0, 1, 3])
        assert [failure.item for failure in store.failures] == [ITEMS[1], ITEMS[7]]


def test_crash_between_the_last_range_and_the_index(tmp_path: Path) -> None:
    assert fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), ITEMS) == [0, 4, 8]
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert (again.complete, again.missing) == (False, [])
    again.finish()
    assert again.complete
    assert_right(again, 7, [0, 1, 2, 3])


def damage_rows(file: Path, kind: str) -> None:
    """Rows 1 of class 0."""
    row, data = 2 * 18, bytearray(file.read_bytes())
    if kind == "zero":
        data[-4 * row : -3 * row] = bytes(row)
    elif kind == "bit":
        data[-4 * row] ^= 1
    file.write_bytes(data[:-1] if kind == "cut" else data)


@pytest.mark.parametrize("kind", ["zero", "bit", "cut"])
def test_a_checkpoint_whose_rows_have_changed_is_not_gone_on_from(tmp_path: Path, checkpoints: None, kind: str) -> None:
    assert fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), ITEMS, stop_after=1) == [0]
    size = (tmp_path / "00000.npy").stat().st_size
    damage_rows(tmp_path / "00000.npy", kind)
    if kind == "cut":
        with (tmp_path / "00000.npy").open("r+b") as file:
            file.truncate(size)
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert fill(again, ITEMS)[0] == (4 if kind == "cut" else 0)
    again.finish()
    if kind != "cut":
        assert_right(again, 0, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("kind", ["zero", "bit", "cut"])
def test_rows_changed_in_a_range_that_is_done_are_found(tmp_path: Path, small_ranges: None, kind: str) -> None:
    """By what verifies the files, and by what would use them."""
    assert fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), ITEMS, stop_after=2) == [0, 4]
    damage_rows(tmp_path / "00000.npy", kind)
    store = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    fill(store, ITEMS)
    store.finish()
    with pytest.raises(DamageError, match=r"00000\.npy: damaged"):
        store.load(0)


def test_what_is_damaged_of_an_unfinished_encoding_is_named_with_its_range(tmp_path: Path, small_ranges: None) -> None:
    root = tmp_path / folder_name(MADE_BY)
    fill(LatentStore(root, MADE_BY, ITEMS, SHAPE), ITEMS, stop_after=2)
    assert list(damaged_files(root)) == []
    damage_rows(root / "00000.npy", "bit")
    ((path, reason, marks),) = damaged_files(root)
    assert (path.name, reason, marks) == ("00000.npy", "row 1 is not what was written", (root / "ranges/00000.json",))
    marks[0].unlink()
    store = LatentStore(root, MADE_BY, ITEMS, SHAPE)
    assert fill(store, ITEMS) == [0, 8]
    store.finish()
    assert_right(store, 0, [0, 1, 2, 3, 4])


def test_rows_written_after_the_last_checkpoint_are_nobody_s_business(tmp_path: Path, checkpoints: None) -> None:
    """A pass that was killed may have written more than it says; an image may be damaged by now."""
    assert fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), ITEMS, stop_after=1) == [0]
    counts = {class_id: sum(item.class_id == class_id for item in ITEMS) for class_id in (0, 7)}
    LatentFiles(tmp_path, counts, SHAPE).write(7, 3, np.ones((1, *SHAPE), np.float16))
    store = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    fill(store, ITEMS, {"7/3"})
    store.finish()
    assert_right(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), 7, [0, 1, 2])


def test_out_of_memory_halves_the_batch_and_is_kept_on_record(tmp_path: Path) -> None:
    store = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    error = OutOfMemoryError("encode", "no room")
    with pytest.raises(OutOfMemoryError):
        fill(store, ITEMS, stop_after=1, error=error)
    store.halve_batch(error)
    assert store.batch == 2
    assert fill(store, ITEMS) == [4, 6, 8]
    store.finish()
    again = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    assert (again.complete, again.batch) == (True, 2)
    assert_right(again, 0, [0, 1, 2, 3, 4])
    assert_right(again, 7, [0, 1, 2, 3])
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["out_of_memory"] == [{"position": 4, "batch": 4, "now": 2, "error": "no room"}]


def test_not_even_one_image_fits(tmp_path: Path) -> None:
    store = LatentStore(tmp_path, {**MADE_BY, "batch": 1}, ITEMS, SHAPE)
    with pytest.raises(OutOfMemoryError, match="not even one image fits"):
        store.halve_batch(OutOfMemoryError("encode", "no room"))


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


def test_an_unfinished_store_loads_nothing_that_is_not_there(tmp_path: Path) -> None:
    store = LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE)
    fill(store, ITEMS, stop_after=2)
    with pytest.raises(DamageError, match="not finished"):
        store.load(7)


def test_a_range_does_not_outlive_its_rows(tmp_path: Path, small_ranges: None) -> None:
    """A file is lost, and what opens the rest next is killed before it has encoded anything."""
    fill(LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE), ITEMS, stop_after=2)
    assert LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE).missing == [2]
    (tmp_path / "00007.npy").unlink()
    assert [LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE).missing for _ in range(2)] == [[0, 1, 2]] * 2


def test_what_an_older_version_left_half_done_is_encoded_anew(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text("of another format")
    assert LatentStore(tmp_path, MADE_BY, ITEMS, SHAPE).missing == [0]
    assert not (tmp_path / "progress.json").exists()
