"""SIGKILL, a full disk and an input/output error at every step of a run; what is there after a re-run is the same."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driving import ROOT, Finished, environment, leftovers, products, tree

from d4m_fast.runs.verify import verify

KINDS = {"SIGKILL": -9, "ENOSPC": 6, "EIO": 6}
RANDOM_KILLS = 24
Step = tuple[str, int]  # its name, and how many of that name came before it
COMMIT = (
    "write bread/tmp:00000.png",
    "write groups/tmp:00000.json",
    "fsync groups/tmp:00000.json",
    "renamed groups/00000.json",
    "renamed run/summary.json",
)


class Lab:
    """A process that has imported everything and forks one run after another."""

    def __init__(self, process: subprocess.Popen[str], scratch: Path, finished: Finished) -> None:
        self._process = process
        self._scratch = scratch
        self._finished = finished
        self.whole = finished.run
        self._count = 0

    def fresh(self) -> Path:
        self._count += 1
        return self._scratch / str(self._count)

    def distill(self, root: Path, **fault: Any) -> tuple[int, str]:
        """Exit code, minus the signal's number if it was killed, and stderr."""
        flags = ("--out", root / "run", "--artifacts", root / "art", "--quiet", "--batch-size", "4")
        job = {
            "args": ["distill", *map(str, self._finished.options), *map(str, flags)],
            "root": str(root),
            "said": str(self._scratch / "said"),
            **fault,
        }
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        return answer["code"], answer["err"]

    def survives(self, kind: str, at: Step, whole: Path) -> None:
        """A run with a fault at step `at`, then a re-run, equals one without."""
        root = self.fresh()
        code, err = self.distill(root, kind=kind, at=at)
        assert code == KINDS[kind] or (code == 6 and kind != "SIGKILL"), (kind, at, err)
        assert "Traceback" not in err
        assert kind == "SIGKILL" or "run the same command again" in err
        self.finishes(root, whole)

    def finishes(self, root: Path, whole: Path) -> None:
        assert self.distill(root, watch=False) == (0, "")
        assert products(root / "run") == products(whole / "run")
        assert tree(root / "art", "**/*.npy") == tree(whole / "art", "**/*.npy")
        assert leftovers(root) == []
        assert verify(root / "run", deep=True).whole
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, finished: Finished) -> Iterator[Lab]:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "faults.py")],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Lab(process, tmp_path_factory.mktemp("lab"), finished)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def whole(lab: Lab) -> Path:
    """An uninterrupted run, and its steps by name in `steps.json`."""
    root = lab.fresh()
    log = root.with_suffix(".json")
    assert lab.distill(root, log=str(log)) == (0, "")
    shutil.move(log, root / "steps.json")
    return root


@pytest.fixture(scope="module")
def steps(whole: Path) -> list[Step]:
    return [(name, count) for name, count in json.loads((whole / "steps.json").read_text())]


def test_every_kind_of_step_is_met(steps: list[Step]) -> None:
    names = [name for name, _ in steps]
    calls = {name.split()[0] for name in names}
    assert calls == {"open(wb)", "open(r+b)", "write", "truncate", "fsync", "rename", "renamed", "mkdir", "unlink"}
    for name in ("plan.json", "config.json", "00000.json", "00001.png", "manifest.jsonl", "summary.json", "index.json"):
        assert any(step.startswith("renamed") and step.endswith(f"/{name}") for step in names), name
    assert len(steps) > 100


def test_a_fault_at_some_steps(lab: Lab, whole: Path, steps: list[Step]) -> None:
    """Those of the commit proper; the kinds of fault in turn."""
    for n, name in enumerate(COMMIT):
        kinds = [kind for kind in KINDS if _may_come(kind, name)]
        assert (name, 0) in steps
        lab.survives(kinds[n % len(kinds)], (name, 0), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_every_step(lab: Lab, whole: Path, steps: list[Step], kind: str) -> None:
    for step in steps:
        if _may_come(kind, step[0]):
            lab.survives(kind, step, whole)


def _may_come(kind: str, name: str) -> bool:
    """After a rename that was done only a kill can come."""
    return kind == "SIGKILL" or not name.startswith("renamed")


def _kills(lab: Lab, whole: Path, count: int, seed: int) -> None:
    """Kill runs of one directory at random moments until they have all been, and finish it in the end."""
    rng, root = random.Random(seed), lab.fresh()
    started = time.monotonic()
    assert lab.distill(lab.fresh(), watch=False)[0] == 0
    lasts = time.monotonic() - started
    killed = 0
    while killed < count:
        if (root / "run" / "summary.json").exists():
            lab.finishes(root, whole)
            root = lab.fresh()
        code, err = lab.distill(root, watch=False, kill_after=max(rng.random() * lasts, 0.001))
        assert code in (0, -9), err
        killed += code == -9
    lab.finishes(root, whole)


def test_a_few_kills_at_random_moments(lab: Lab, whole: Path) -> None:
    _kills(lab, whole, 2, seed=0)


@pytest.mark.slow
def test_many_kills_at_random_moments(lab: Lab, whole: Path) -> None:
    _kills(lab, whole, RANDOM_KILLS, seed=1)
