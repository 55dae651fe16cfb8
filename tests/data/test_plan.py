from __future__ import annotations

import json
import math

import pytest

from d4m_fast.data.plan import MAX_GROUP, Plan, make_plan


@pytest.mark.parametrize("classes", [1, 7, 10, 1000])
@pytest.mark.parametrize(("ipc", "batch"), [(1, 50), (2, 3), (10, 50), (10, 16), (50, 50), (3, 50), (200, 8)])
def test_every_class_once_and_in_order(classes: int, ipc: int, batch: int) -> None:
    ids = range(5, 5 + classes)
    plan = make_plan(ids, ipc, batch_size=batch, threads=2)
    assert [c for group in plan.groups for c in group.classes] == list(ids)
    assert [group.id for group in plan.groups] == list(range(len(plan.groups)))
    sizes = [len(group.classes) for group in plan.groups]
    assert max(sizes) <= MAX_GROUP
    assert len(set(sizes[:-1])) <= 1
    if math.lcm(ipc, batch) // ipc <= MAX_GROUP:
        assert all(size * ipc % batch == 0 for size in sizes[:-1])


def test_groups_are_no_larger_than_whole_batches_need() -> None:
    plan = make_plan(range(100), 10, batch_size=50, threads=1)
    assert {len(group.classes) for group in plan.groups} == {5}


def test_a_group_is_capped() -> None:
    plan = make_plan(range(100), 1, batch_size=64, threads=1)
    assert {len(group.classes) for group in plan.groups} == {MAX_GROUP}


@pytest.mark.parametrize(
    ("classes", "ipc", "most", "batch"), [(10, 1, 50, 10), (100, 1, 50, 20), (100, 3, 50, 30), (100, 10, 50, 50)]
)
def test_batches_shrink_rather_than_be_padded(classes: int, ipc: int, most: int, batch: int) -> None:
    plan = make_plan(range(classes), ipc, batch_size=most, threads=1)
    assert plan.batch_size == batch
    assert all(len(group.classes) * ipc % batch == 0 for group in plan.groups)


def test_json_round_trip() -> None:
    plan = make_plan([3, 1, 4], 10, batch_size=20, threads=2)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_what_is_left() -> None:
    plan = make_plan(range(6), 1, batch_size=2, threads=1)
    assert [group.id for group in plan.without({1})] == [0, 2]
