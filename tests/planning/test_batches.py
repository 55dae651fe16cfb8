"""Batch sizes: what a probe may try, what it chooses, what it costs, and that a run is probed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from driving import Finished, Ran, products

from d4m_fast import generation, pipeline
from d4m_fast.errors import OutOfMemoryError
from d4m_fast.measure import clock
from d4m_fast.measure.flops import most_activations, trace_model
from d4m_fast.planning import batches
from d4m_fast.planning.batches import CALLS, LEVEL, PROBE_SHARE, Stage, affordable, fastest

Distill = Callable[..., Ran]


def _not_called(batch: int) -> Callable[[], object]:
    raise AssertionError(batch)


def stage(*, images: int = 50_000, calls: int = 36, usual: int = 50, fits: int = 1000) -> Stage:
    return Stage(images, calls, usual, lambda: fits, 0, _not_called)


def test_a_long_run_may_try_all_powers_of_two() -> None:
    assert affordable(stage()) == [8, 16, 32, 64, 128, 256, 512]
    assert affordable(stage(fits=100)) == [8, 16, 32, 64]
    assert affordable(stage(fits=20)) == [8, 16]


@pytest.mark.parametrize(("images", "calls"), [(100, 36), (6, 4), (1000, 1)])
def test_a_short_run_is_not_probed(images: int, calls: int) -> None:
    assert affordable(stage(images=images, calls=calls)) == []


@pytest.mark.parametrize("images", [400, 1000, 5000, 10**6])
def test_a_probe_costs_little_of_the_run(images: int) -> None:
    assert CALLS * sum(affordable(stage(images=images))) <= PROBE_SHARE * images * 36


def test_nothing_fits_nothing_is_tried() -> None:
    assert affordable(stage(fits=0)) == []


def test_the_fastest_need_not_be_the_largest() -> None:
    assert fastest({8: 1.0, 16: 3.0, 32: 2.0}) == 16
    assert fastest({8: LEVEL + 0.001, 16: 1.0}) == 8
    assert fastest({8: LEVEL - 0.001, 16: 1.0}) == 16
    assert fastest({}) == 1


class Network:
    """Calls that take as long as is said, by a clock of its own; making their inputs takes an hour.

    Attributes:
        opened: batches that inputs were made for, in order.
    """

    def __init__(self, speeds: dict[int, float]) -> None:
        self._speeds = speeds
        self.opened: list[int] = []
        self.now = 0.0

    def open_call(self, batch: int) -> Callable[[], None]:
        self.opened.append(batch)
        self.now += 3600
        calls = count()

        def call() -> None:
            if batch not in self._speeds:
                raise OutOfMemoryError("denoise", "no room")
            self.now += batch / self._speeds[batch] * (3 if next(calls) == 0 else 1)  # the first call warms up

        return call

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("speeds", "chosen", "tried"),
    [
        ({8: 1.0, 16: 2.0, 32: 4.0, 64: 4.0, 128: 3.0, 256: 9.0, 512: 9.0}, 32, [8, 16, 32, 64, 128]),
        ({8: 1.0, 16: 2.0}, 16, [8, 16, 32]),
        ({}, 1, [8]),
    ],
    ids=["falls", "full", "nothing"],
)
def test_probing(monkeypatch: pytest.MonkeyPatch, speeds: dict[int, float], chosen: int, tried: list[int]) -> None:
    network = Network(speeds)
    monkeypatch.setattr(clock, "time", network)
    found, why = batches._choose(replace(stage(), open_call=network.open_call))
    assert (found, network.opened) == (chosen, tried)
    assert why["by"] == "probe"
    assert why["images_per_second"] == {str(b): pytest.approx(speeds[b]) for b in tried if b in speeds}


@pytest.mark.parametrize(("fits", "want"), [(1000, (50, "default")), (30, (30, "memory")), (0, (1, "memory"))])
def test_without_a_probe_memory_decides(fits: int, want: tuple[int, str]) -> None:
    found, why = batches._choose(stage(images=10, fits=fits))
    assert (found, why) == (want[0], {"by": want[1]})


def test_what_surely_fits_is_not_traced() -> None:
    def traced() -> int:
        raise AssertionError

    found, why = batches._choose(Stage(10, 1, 50, traced, 50, _not_called))
    assert (found, why) == (50, {"by": "default"})


@pytest.mark.parametrize("model", ["bundled", "sd15"])
def test_the_rough_bound_is_one(model: str) -> None:
    shapes = trace_model(model)
    bound = most_activations(shapes.path, shapes.resolution)
    assert 1 < bound / max(part.activations for part in shapes.networks.values()) < 100


def plan_of(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "plan.json").read_text())
    return value


def test_a_run_is_probed_once_and_its_plan_says_what_was_found(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real calls of all three networks; the run is made to look long, is broken off, and goes on."""
    flags = ("--ipc", 4)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "PROBE_SHARE", 1000.0)
        patch.setattr(batches, "SMALLEST", 2)
        patch.setattr(batches, "HOPELESS", 0.0)
        patch.setattr(generation, "cluster_group", _stop)
        assert distill(*flags).code == 130
    plan = plan_of(tmp_path / "run")
    for name, images in (("encode_batch", 18), ("batch_size", 12), ("decode_batch", 12)):
        speeds = plan["why"][name]["images_per_second"]
        assert list(speeds) == [str(2**i) for i in range(1, 5) if 2**i <= images]
        assert all(speed > 0 for speed in speeds.values())
    monkeypatch.setattr(pipeline, "choose_batches", _stop)
    assert distill(*flags).code == 0
    assert plan_of(tmp_path / "run") == plan
    assert distill(*flags, "--out", tmp_path / "other").code == 130


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_batch_size_that_is_given_wins(distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PROBE_SHARE", 1000.0)
    assert distill("--batch-size", 3).code == 0
    plan = plan_of(tmp_path / "run")
    assert {g["batch_size"] for g in plan["groups"]} == {3}
    assert plan["why"]["batch_size"] == {"by": "--batch-size"}


def test_latents_that_are_there_fix_the_batch_they_were_encoded_with(
    distill: Distill, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "ENCODE_BATCH", 5)
    ran = distill("--artifacts", finished.artifacts, "--json")
    assert (ran.code, "encode" in ran.json["seconds"]) == (0, False)
    assert plan_of(tmp_path / "run")["encode_batch"] == 32
    assert products(tmp_path / "run") == products(finished.run)
    assert distill("--out", tmp_path / "anew").code == 0
    assert plan_of(tmp_path / "anew")["encode_batch"] == 5
    assert [path.name[-2:] for path in (tmp_path / "art" / "latents").iterdir()] == ["-5"]


def test_little_memory_makes_small_batches(distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "free_memory", lambda _: 2_000_000)
    assert distill().code == 0
    plan = plan_of(tmp_path / "run")
    assert plan["why"]["batch_size"] == {"by": "memory"}
    assert 1 <= plan["groups"][0]["batch_size"] < 6
