"""What processes take, each from what the others leave."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from d4m_fast.runs.claims import BundleLimits, GroupClaims, Seat, UnitClaims, failures_of
from d4m_fast.runs.plan import Batches as PlanBatches
from d4m_fast.runs.plan import Group, make_plan
from d4m_fast.storage.leases import Pulse, Timing

UNITS = range(40)
LIMITS = BundleLimits(lambda group: 10, 35, 100)


def claims(path: Path, rank: int = 0, ranks: int = 1) -> UnitClaims:
    """Of one of several processes."""
    path.mkdir(exist_ok=True)
    return UnitClaims(path, UNITS, set(), Pulse(Timing()), Seat(rank, ranks))


def do(path: Path, claim: UnitClaims, unit: int) -> None:
    (path / f"{unit:05d}.json").write_text("{}")
    claim.end(unit)


@pytest.mark.parametrize("seed", range(5))
def test_each_unit_is_taken_by_one_whatever_the_order(tmp_path: Path, seed: int) -> None:
    rng, taken = random.Random(seed), list[int]()
    crowd = [claims(tmp_path, rank, 4) for rank in range(4)]
    streams: list[tuple[UnitClaims, Iterator[int]]] = [(claim, claim.take()) for claim in crowd]
    waiting = dict[UnitClaims, int]()
    while streams:
        claim, stream = rng.choice(streams)
        if claim in waiting:
            do(tmp_path, claim, waiting.pop(claim))
        unit = next(stream, None)
        if unit is None:
            streams.remove((claim, stream))
        else:
            taken.append(unit)
            waiting[claim] = unit
    for claim, unit in waiting.items():
        do(tmp_path, claim, unit)
    assert sorted(taken) == list(UNITS)
    assert [claim.look() for claim in crowd] == [0] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{unit:05d}.json" for unit in UNITS]


def test_those_that_begin_elsewhere_meet_late(tmp_path: Path) -> None:
    first = [next(claims(tmp_path, rank, 4).take()) for rank in range(4)]
    assert first == [0, 10, 20, 30]


def test_a_failure_is_put_down_to_what_was_worked_on(tmp_path: Path) -> None:
    one = claims(tmp_path)
    stream = one.take()
    working, waiting = next(stream), next(stream)
    one.work([working])
    assert one.give_back("no good") == [working]
    assert failures_of(tmp_path, [working, waiting]) == {working: "no good", waiting: "nobody has made it"}
    other = claims(tmp_path)
    assert working not in list(other.take())
    assert other.retry() == working
    assert other.retry() is None


def test_a_third_failure_sets_aside_and_forgiving_brings_back(tmp_path: Path) -> None:
    for number in range(3):
        one = claims(tmp_path)
        unit = next(one.take()) if number == 0 else one.retry()
        assert unit == 0
        one.work([0])
        one.give_back(f"reason {number}")
    one = claims(tmp_path)
    assert (one.look(), one.set_aside) == (len(UNITS) - 1, {0})
    assert one.retry() is None
    one.forgive()
    assert one.set_aside == set()
    assert next(one.take()) == 0


def test_what_was_lost_is_seen_and_what_is_over_is_no_more(tmp_path: Path) -> None:
    one, two = claims(tmp_path), claims(tmp_path)
    unit = next(one.take())
    assert one.may_write(unit)
    (tmp_path / f"{unit:05d}.lease-0002").write_text("taken over")
    assert not one.holds(unit)
    do(tmp_path, two, unit)
    one.end(unit)
    assert not one.may_write(unit)
    assert unit not in list(two.take())


def test_a_folder_that_is_gone_is_done(tmp_path: Path) -> None:
    gone = UnitClaims(tmp_path / "gone", UNITS, set(), Pulse(Timing()), Seat())
    assert (list(gone.take()), gone.look()) == ([], 0)


def groups() -> tuple[Group, ...]:
    return make_plan(range(40), 50, PlanBatches(), threads=1).groups


def test_bundles_are_bounded_and_shrink_towards_the_end(tmp_path: Path) -> None:
    (tmp_path / "groups").mkdir()
    claim = GroupClaims(tmp_path, groups(), set(), Pulse(Timing()))
    sizes = [len(bundle) for bundle in claim.bundles(LIMITS)]
    assert sum(sizes) == 40
    assert max(sizes) == 3  # of 10 bytes each, 35 allowed
    assert sizes[-2:] == [1, 1]
    assert sizes == sorted(sizes, reverse=True)


def test_a_group_too_large_for_a_bundle_is_one(tmp_path: Path) -> None:
    (tmp_path / "groups").mkdir()
    claim = GroupClaims(tmp_path, groups(), set(), Pulse(Timing()))
    assert len(next(claim.bundles(BundleLimits(lambda group: 1 << 40, 35, 0)))) == 1
