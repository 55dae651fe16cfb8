"""A device that cannot hold a batch: the run goes on with a smaller one, says so, and no image is lost or repeated."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving import Finished, Ran, json_lines, products, refused, tree
from PIL import Image

from d4m_fast.engine.networks import Networks
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.schedule import open_schedule
from d4m_fast.engine.signature import SIGNATURES, Component
from d4m_fast.job import Job

Distill = Callable[..., Ran]


@dataclass
class Limits:
    """Rows that each network can take, from its `after`-th call on."""

    rows: Mapping[Component, int]
    after: int = 0
    calls: Counter[str] = field(default_factory=Counter)


class Limited:
    """A runtime with little memory."""

    def __init__(self, runtime: Runtime, component: Component, limits: Limits) -> None:
        self._runtime, self._component, self._limits = runtime, component, limits
        self.device, self.dtype = runtime.device, runtime.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        self._limits.calls[self._component] += 1
        rows = SIGNATURES[self._component].rows(inputs)
        late = self._limits.calls[self._component] > self._limits.after
        if late and rows > self._limits.rows.get(self._component, rows):
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried {rows} rows.\nSee the manual")
        return self._runtime(inputs)


Limit = Callable[[Limits], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    opened = Job.open_networks

    def apply(limits: Limits) -> None:
        def open_networks(self: Job) -> Networks:
            networks = opened(self)
            return networks.with_runtimes(lambda c: Limited(networks.runtime(c), c, limits))

        monkeypatch.setattr(Job, "open_networks", open_networks)

    return apply


def plan_of(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "plan.json").read_text())
    return value


def record(run: Path, group: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "groups" / f"{group:05d}.json").read_text())
    return value


def pixels(run: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(f), int) for f in sorted(run.glob("images/*/*.png"))])


def whole(run: Path) -> None:
    rows = json_lines(run / "manifest.jsonl")
    assert [(r["class_id"], r["index"]) for r in rows] == [(c, i) for c in range(3) for i in range(2)]
    assert len(tree(run, "images/**/*.png")) == 6


def test_the_unet_does_not_fit(distill: Distill, tmp_path: Path, finished: Finished, limit: Limit) -> None:
    """Batches of 4 become batches of 2, and give the bytes that a run of batches of 2 has."""
    limit(Limits({"unet": 5}))
    ran = distill("--batch-size", 4)
    assert ran.code == 0
    assert "denoise: out of memory (CUDA out of memory. Tried 8 rows.); going on with batches of 2" in ran.err
    whole(tmp_path / "run")
    plan = plan_of(tmp_path / "run")
    assert [g["batch_size"] for g in plan["groups"]] == [2, 2]
    assert plan["out_of_memory"][0].items() >= {"stage": "denoise", "group": 0, "batch_size": 4, "now": 2}.items()
    assert record(tmp_path / "run", 0)["out_of_memory"] == plan["out_of_memory"]
    assert distill("--batch-size", 2, "--out", tmp_path / "two").code == 0
    assert tree(tmp_path / "run" / "images") == tree(tmp_path / "two" / "images")
    assert np.abs(pixels(tmp_path / "run") - pixels(finished.run)).max() <= 1


def test_what_is_committed_stays(distill: Distill, tmp_path: Path, tiny_model: Path, limit: Limit) -> None:
    """Memory runs out in the second group: the first stays as it is, and no image is made twice."""
    calls = len(open_schedule(tiny_model, 4, 0.7).steps)
    limits = Limits({"unet": 2}, after=calls)
    limit(limits)
    ran = distill("--batch-size", 2, "--quiet")
    assert (ran.code, ran.err) == (0, "")
    plan, records = plan_of(tmp_path / "run"), [record(tmp_path / "run", group) for group in range(3)]
    assert [r["batch_size"] for r in records] == [g["batch_size"] for g in plan["groups"]] == [2, 1, 1]
    assert [r["out_of_memory"] for r in records] == [[], plan["out_of_memory"], []]
    assert limits.calls["unet"] == calls + 1 + 4 * calls
    whole(tmp_path / "run")


def test_the_decoder_does_not_fit(distill: Distill, tmp_path: Path, finished: Finished, limit: Limit) -> None:
    limit(Limits({"vae_decoder": 2}))
    ran = distill()
    assert (ran.code, ran.err.count("decode: out of memory")) == (0, 2)
    (group,) = plan_of(tmp_path / "run")["groups"]
    assert (group["batch_size"], group["decode_batch"]) == (6, 1)
    whole(tmp_path / "run")
    assert np.abs(pixels(tmp_path / "run") - pixels(finished.run)).max() <= 1


def test_the_encoder_does_not_fit(distill: Distill, tmp_path: Path, finished: Finished, limit: Limit) -> None:
    limit(Limits({"vae_encoder": 8}))
    ran = distill("--batch-size", 6)
    assert (ran.code, ran.err.count("encode: out of memory")) == (0, 2)
    (index,) = (tmp_path / "art").rglob("index.json")
    changes = json.loads(index.read_text())["out_of_memory"]
    assert [(c["position"], c["batch"], c["now"]) for c in changes] == [(0, 32, 16), (0, 16, 8)]
    ours, theirs = (next(root.rglob("00002.npy")) for root in (tmp_path / "art", finished.artifacts))
    np.testing.assert_allclose(np.load(ours).astype(float), np.load(theirs).astype(float), atol=2e-3)
    whole(tmp_path / "run")


@pytest.mark.parametrize("component", ["unet", "vae_decoder", "vae_encoder"])
def test_not_even_one_image_fits(distill: Distill, tmp_path: Path, limit: Limit, component: Component) -> None:
    limit(Limits({component: 0}))
    refused(distill("--batch-size", 4), 6, "out of memory", "not even one image fits", "--resolution")
    assert list((tmp_path / "run" / "groups").iterdir()) == []


def test_a_smaller_plan_is_resumed(
    distill: Distill, tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off after memory ran out, the run goes on with the smaller batch, memory or not."""
    with monkeypatch.context() as patch:
        limits = Limits({"unet": 5})
        opened = Job.open_networks
        patch.setattr(
            Job,
            "open_networks",
            lambda self: (n := opened(self)).with_runtimes(lambda c: Limited(n.runtime(c), c, limits)),
        )
        patch.setattr("d4m_fast.runs.run.RunDirectory._commit", _interrupt)
        assert distill("--batch-size", 4).code == 130
    assert [g["batch_size"] for g in plan_of(tmp_path / "run")["groups"]] == [2, 2]
    assert distill("--batch-size", 4).code == 0
    limit(Limits({"unet": 5}))
    assert distill("--batch-size", 4, "--out", tmp_path / "whole").code == 0
    assert products(tmp_path / "run") == products(tmp_path / "whole")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
