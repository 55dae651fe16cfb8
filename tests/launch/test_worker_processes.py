"""Many processes on one run, and whatever becomes of them: the bytes are those of one undisturbed process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from driving import ROOT, environment, leftovers, products, tree, write_photos

from d4m_fast.runs.verify import verify
from d4m_fast.storage.lease_files import LeaseRecord, highest_numbers
from d4m_fast.storage.state import PLAN, require_state

CLASSES = tuple(f"class {i}" for i in range(6))
PER_CLASS = 50  # two ranges of the source
GROUPS = 6


@dataclass
class Crowd:
    """A process that has imported everything and forks drivers, which fork workers."""

    process: subprocess.Popen[str]
    scratch: Path
    options: tuple[str, ...]
    count: int = 0

    def fresh(self) -> Path:
        self.count += 1
        return self.scratch / str(self.count)

    def start(self, root: Path, *flags: object, **changes: object) -> Started:
        """`d4m-fast distill` of a run in `root`; "name" tells it from others there."""
        name = changes.pop("name", "")
        run, artifacts = root / f"run{name}", root / f"art{name}"
        places = ("--out", run, "--artifacts", artifacts, "--quiet", "--json")
        args = ("distill", *self.options, *places, *flags)
        return self.command(*args, **changes)

    def command(self, *args: object, **changes: object) -> Started:
        said = self.fresh()
        named = {change.replace("_", " "): str(value) for change, value in changes.items()}
        job = {"do": "start", "args": list(map(str, args)), "said": str(said), "changes": named}
        return Started(self, self.ask(job), said)

    def distill(self, root: Path, *flags: object, **changes: object) -> tuple[int, str]:
        return self.start(root, *flags, **changes).wait()

    def ask(self, job: dict[str, Any]) -> int:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        return int(stdout.readline())

    def same(self, root: Path, whole: Path, name: str = "") -> None:
        """A run has the bytes of another, and nothing is left of its making."""
        run = root / f"run{name}"
        assert products(run) == products(whole / "run")
        assert leftovers(root) == []
        assert list(run.glob("groups/*.lease-*")) == []
        assert verify(run, deep=True).whole


@dataclass
class Started:
    """A driver."""

    crowd: Crowd
    pid: int
    said: Path

    def wait(self) -> tuple[int, str]:
        """Exit code, minus the signal's number if it was killed, and stderr."""
        code = self.crowd.ask({"do": "wait", "pid": self.pid})
        return code, Path(f"{self.said}.err").read_text()

    def children(self) -> list[int]:
        return children_of(self.pid)


def children_of(pid: int) -> list[int]:
    """Processes that have this parent."""
    found = list[int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def holders_of_work(run: Path) -> dict[int, int]:
    """Process -> a group that it works on now."""
    numbers = highest_numbers(path.name for path in (run / "groups").glob("*"))
    found = dict[int, int]()
    for unit, number in numbers.items():
        try:
            record = LeaseRecord.from_bytes((run / "groups" / f"{unit}.lease-{number:04d}").read_bytes())
        except OSError:
            continue
        if record is not None and record.phase == "working":
            found[record.holder.pid] = int(unit)
    return found


def some_worker(run: Path, among: Callable[[], list[int]]) -> int:
    """A process that works on a group, once there is one."""
    found = list[int]()

    def look() -> bool:
        found[:] = [pid for pid in holders_of_work(run) if pid in among()]
        return bool(found)

    until(look)
    return found[0]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Crowd]:
    data = write_photos(tmp_path_factory.mktemp("data") / "photos", CLASSES, PER_CLASS)
    options = ("--data", data, "--model", tiny_model, "--ipc", 2, "--steps", 4, "--threads", 1)
    flags = ("--batch-size", 2, "--lease-seconds", 1)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "crowd.py")],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Crowd(process, tmp_path_factory.mktemp("crowd"), tuple(map(str, (*options, *flags))))
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def whole(crowd: Crowd) -> Path:
    """A run of one process."""
    root = crowd.fresh()
    assert crowd.distill(root) == (0, "")
    assert len(list((root / "run" / "groups").iterdir())) == GROUPS
    return root


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers(crowd: Crowd, whole: Path, workers: int) -> None:
    root = crowd.fresh()
    assert crowd.distill(root, "--workers", workers) == (0, "")
    crowd.same(root, whole)
    assert tree(root / "art", "**/*.npy", "**/index.json") == tree(whole / "art", "**/*.npy", "**/index.json")
    assert len(list((root / "run" / "logs").iterdir())) == workers


def test_two_drivers_of_one_run(crowd: Crowd, whole: Path) -> None:
    root = crowd.fresh()
    drivers = [crowd.start(root, slow=0.02) for _ in range(2)]
    assert [driver.wait() for driver in drivers] == [(0, ""), (0, "")]
    crowd.same(root, whole)


def test_a_worker_that_is_killed_is_replaced(crowd: Crowd, whole: Path) -> None:
    root = crowd.fresh()
    driver = crowd.start(root, "--workers", 2, slow=0.05)
    os.kill(some_worker(root / "run", driver.children), signal.SIGKILL)
    assert driver.wait() == (0, "")
    crowd.same(root, whole)
    assert len(list((root / "run" / "logs").iterdir())) == 2


def test_shards_on_disks_of_their_own_are_merged(crowd: Crowd, whole: Path) -> None:
    root = crowd.fresh()
    for number in (1, 2, 3):
        code, err = crowd.distill(root, "--shard", f"{number}/3", name=str(number))
        assert (code, err) == (0, "")
    runs = [root / f"run{number}" for number in (1, 2, 3)]
    code, err = crowd.command("merge", runs[0], runs[2], "--out", root / "run").wait()
    assert (code, "2 of 6 groups are in none of these runs: 2 (classes 2), 3 (classes 3); finish" in err) == (1, True)
    for flags in ((), ("--quiet",), ("--json",)):
        assert crowd.command("merge", *runs, "--out", root / "run", *flags).wait() == (0, "")
    crowd.same(root, whole)
    image = next(runs[1].glob("images/*/00001.png"))
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    code, err = crowd.command("merge", *runs, "--out", root / "again").wait()
    assert (code, f"{image}: damaged" in err) == (5, True)


@pytest.mark.slow
def test_shards_in_one_directory_repeat_nothing(crowd: Crowd, whole: Path) -> None:
    root = crowd.fresh()
    shards = [crowd.start(root, "--shard", f"{number}/3", slow=0.02) for number in (1, 2, 3)]
    assert [shard.wait() for shard in shards] == [(0, "")] * 3
    crowd.same(root, whole)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--workers", 2), ()])
def test_a_driver_that_is_killed_leaves_no_process_and_the_run_goes_on(
    crowd: Crowd, whole: Path, flags: tuple[object, ...]
) -> None:
    root = crowd.fresh()
    driver = crowd.start(root, *flags, slow=0.05)
    some_worker(root / "run", lambda: [driver.pid, *driver.children()])
    children = driver.children()
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait()[0] == -signal.SIGKILL
    until(lambda: not any(map(is_alive, children)), 30)
    assert crowd.distill(root, *flags) == (0, "")
    crowd.same(root, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_all_processes(crowd: Crowd, whole: Path, number: int, code: int) -> None:
    root = crowd.fresh()
    driver = crowd.start(root, "--workers", 2, slow=0.05)
    some_worker(root / "run", driver.children)
    children = driver.children()
    os.kill(driver.pid, number)
    ended, err = driver.wait()
    assert (ended, "Traceback" in err) == (code, False)
    until(lambda: not any(map(is_alive, children)), 10)  # multiprocessing's tracker ends after the driver
    assert list((root / "run").glob("groups/*.lease-*")) == []
    assert crowd.distill(root, "--workers", 2) == (0, "")
    crowd.same(root, whole)


@pytest.mark.slow
@pytest.mark.parametrize("waits", [False, True])
def test_a_worker_that_hangs_loses_its_work_and_comes_back_late(crowd: Crowd, whole: Path, waits: bool) -> None:
    """Stopped while it works, it is taken over; whether it wakes before or after the end, nothing changes."""
    root = crowd.fresh()
    sleeper = crowd.start(root, slow=0.05)
    until(lambda: sleeper.pid in holders_of_work(root / "run"))
    os.kill(sleeper.pid, signal.SIGSTOP)
    other = crowd.start(root)
    if waits:
        assert other.wait() == (0, "")
        crowd.same(root, whole)
    else:
        until(lambda: other.pid in holders_of_work(root / "run"))
    before = tree(root / "run", "images/**/*", "groups/*.json")
    os.kill(sleeper.pid, signal.SIGCONT)
    assert sleeper.wait() == (0, "")
    assert waits or other.wait() == (0, "")
    assert before.items() <= tree(root / "run", "images/**/*", "groups/*.json").items()
    crowd.same(root, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"no_flock": ""},
        {"clock": -86400},
        {"clock": 86400},
        {"no_exclusion": ""},
        {"no_links": ""},
        {"no_flock": "", "no_links": "", "clock": 7200},
    ],
)
def test_on_other_file_systems_and_with_wrong_clocks(crowd: Crowd, whole: Path, changes: dict[str, object]) -> None:
    root = crowd.fresh()
    odd, even = crowd.start(root, slow=0.02, **changes), crowd.start(root, "--workers", 2, slow=0.02)
    assert [odd.wait()[0], even.wait()[0]] == [0, 0]
    crowd.same(root, whole)


@pytest.mark.slow
def test_a_full_disk_of_one_worker_ends_the_run_in_one_line(crowd: Crowd, whole: Path) -> None:
    root = crowd.fresh()
    code, err = crowd.distill(root, "--workers", 2, slow=0.02, full_disk_of_worker=1)
    assert (code, len(err.splitlines())) == (6, 1)
    assert "no space left; free some and run the same command again" in err
    assert crowd.distill(root, "--workers", 2) == (0, "")
    crowd.same(root, whole)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["poison", "bad_class"])
def test_what_fails_three_times_is_set_aside_and_named_and_tried_again(crowd: Crowd, whole: Path, fault: str) -> None:
    root = crowd.fresh()
    code, err = crowd.distill(root, "--workers", 2, **{fault: 2})
    assert (code, len(err.splitlines())) == (3, 1)
    reason = "ended or hung" if fault == "poison" else "class 2 is no good"
    assert "set aside after failing again and again: group 2 (" in err
    assert reason in err
    assert "group 1" not in err and "group 3" not in err
    assert len(list((root / "run" / "groups").glob("*.json"))) == GROUPS - 1
    assert crowd.distill(root, "--workers", 2) == (0, "")
    crowd.same(root, whole)


@pytest.mark.slow
def test_memory_that_runs_out_for_several_makes_the_plan_smaller_once(crowd: Crowd, whole: Path) -> None:
    """The second reads what the first has changed: batches are halved once."""
    root = crowd.fresh()
    assert crowd.distill(root, "--workers", 2, memory=1, slow=0.02) == (0, "")
    plan = require_state(root / "run" / "plan.json", PLAN)
    assert [group["batch_size"] for group in plan["groups"]] == [1] * GROUPS
    assert [entry["now"] for entry in plan["out_of_memory"]] == [1]
    assert verify(root / "run", deep=True).whole
    assert (products(root / "run").keys(), leftovers(root)) == (products(whole / "run").keys(), [])


@pytest.mark.slow
def test_repair_does_not_disturb_who_works(crowd: Crowd, whole: Path) -> None:
    root = crowd.fresh()
    driver = crowd.start(root, slow=0.1)
    until(lambda: driver.pid in holders_of_work(root / "run"))
    code, err = crowd.command("verify", root / "run", "--repair").wait()
    assert (code, f"in use by process {driver.pid}" in err) == (4, True)
    assert crowd.command("verify", root / "run").wait()[0] == 1
    assert driver.wait() == (0, "")
    crowd.same(root, whole)


@pytest.mark.slow
def test_a_lost_image_is_made_again_by_several(crowd: Crowd, whole: Path) -> None:
    root = crowd.fresh()
    shutil.copytree(whole, root)
    next((root / "run").glob("images/*/00000.png")).unlink()
    assert crowd.distill(root, "--workers", 2) == (0, "")
    crowd.same(root, whole)
