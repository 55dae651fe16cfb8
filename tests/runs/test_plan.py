from __future__ import annotations

import json
import math

import pytest

from d4m_fast.errors import OutOfMemoryError
from d4m_fast.runs.plan import MAX_GROUP, Batches, Group, Plan, make_plan


@pytest.mark.parametrize("classes", [1, 7, 10, 1000])
@pytest.mark.parametrize(("ipc", "batch"), [(1, 50), (2, 3), (10, 50), (10, 16), (50, 50), (3, 50), (200, 8)])
def test_every_class_once_and_in_order(classes: int, ipc: int, batch: int) -> None:
    ids = range(5, 5 + classes)
    plan = make_plan(ids, ipc, Batches(generate=batch), threads=2)
    assert [c for group in plan.groups for c in group.classes] == list(ids)
    assert [group.id for group in plan.groups] == list(range(len(plan.groups)))
    sizes = [len(group.classes) for group in plan.groups]
    assert max(sizes) <= MAX_GROUP
    assert len(set(sizes[:-1])) <= 1
    if math.lcm(ipc, batch) // ipc <= MAX_GROUP:
        assert all(size * ipc % batch == 0 for size in sizes[:-1])


def test_groups_are_no_larger_than_whole_batches_need() -> None:
    plan = make_plan(range(100), 10, Batches(generate=50), threads=1)
    assert {len(group.classes) for group in plan.groups} == {5}


def test_a_group_is_capped() -> None:
    plan = make_plan(range(100), 1, Batches(generate=64), threads=1)
    assert {len(group.classes) for group in plan.groups} == {MAX_GROUP}


@pytest.mark.parametrize(
    ("classes", "ipc", "most", "batch"), [(10, 1, 50, 10), (100, 1, 50, 20), (100, 3, 50, 30), (100, 10, 50, 50)]
)
def test_batches_shrink_rather_than_be_padded(classes: int, ipc: int, most: int, batch: int) -> None:
    plan = make_plan(range(classes), ipc, Batches(generate=most), threads=1)
    assert {group.batch_size for group in plan.groups} == {batch}
    assert all(len(group.classes) * ipc % batch == 0 for group in plan.groups)


def test_json_round_trip() -> None:
    plan = make_plan([3, 1, 4], 10, Batches(generate=20), threads=2)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_what_is_left() -> None:
    plan = make_plan(range(6), 1, Batches(generate=2), threads=1)
    assert [group.id for group in plan.without({1})] == [0, 2]


@pytest.mark.parametrize(("decode", "each"), [(50, 50), (49, 25), (16, 13), (1, 1)])
def test_a_batch_is_decoded_in_equal_parts(decode: int, each: int) -> None:
    plan = make_plan(range(10), 10, Batches(generate=50, decode=decode), threads=1)
    assert {group.decode_batch for group in plan.groups} == {each}


def test_out_of_memory_halves_what_is_left() -> None:
    plan = make_plan(range(6), 4, Batches(generate=8, decode=6), threads=1)
    assert [(g.batch_size, g.decode_batch) for g in plan.groups] == [(8, 4)] * 3
    smaller = plan.with_smaller_batch(OutOfMemoryError("decode", "no room"), {0})
    assert [(g.batch_size, g.decode_batch) for g in smaller.groups] == [(8, 4), (8, 2), (8, 2)]
    smallest = smaller.with_smaller_batch(OutOfMemoryError("denoise", "none"), {0, 1})
    assert [(g.batch_size, g.decode_batch) for g in smallest.groups] == [(8, 4), (8, 2), (4, 2)]
    assert [g.classes for g in smallest.groups] == [g.classes for g in plan.groups]
    assert smallest.out_of_memory == (
        {"stage": "decode", "group": 1, "decode_batch": 4, "now": 2, "error": "no room"},
        {"stage": "denoise", "group": 2, "batch_size": 8, "now": 4, "error": "none"},
    )
    assert Plan.from_json(json.loads(json.dumps(smallest.to_json()))) == smallest


def test_decoding_is_never_in_larger_batches_than_denoising() -> None:
    plan = Plan(32, 1, (Group(0, (0,), 4, 4),), {})
    assert plan.with_smaller_batch(OutOfMemoryError("denoise", ""), {}).groups == (Group(0, (0,), 2, 2),)


@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_nothing_is_smaller_than_one_image(stage: str) -> None:
    plan = Plan(32, 1, (Group(0, (0,), 1, 1),), {})
    with pytest.raises(OutOfMemoryError, match=rf"{stage}: out of memory \(no room\); not even one image fits"):
        plan.with_smaller_batch(OutOfMemoryError(stage, "no room"), {})
