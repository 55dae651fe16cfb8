"""Who holds what, by files alone: no lock, no clock but each observer's own, no time of a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from d4m_fast.errors import PreflightError
from d4m_fast.storage import leases as module
from d4m_fast.storage.lease_files import LEASE_BYTES, LeaseRecord, Phase, failures, highest_numbers, holders
from d4m_fast.storage.leases import MOST_TRIES, Lease, LeaseFolder, Pulse, Standing, Timing
from d4m_fast.storage.processes import MachineProcess, is_dead, this_process

ELSEWHERE = MachineProcess("far.example", "another boot", 1, "5")


class Clock:
    """A monotonic clock that goes as it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def folder(path: Path, clock: Clock) -> LeaseFolder:
    """The leases as another process sees them."""
    return LeaseFolder(path, Pulse(Timing(60), clock), clock)


def take(leases: LeaseFolder, unit: str = "00000", number: int = 1) -> Lease:
    lease = leases.take(unit, number)
    assert lease is not None
    return lease


def elsewhere(lease: Lease) -> Lease:
    """Rewritten as if a process of another machine held it."""
    lease.record = replace(lease.record, holder=ELSEWHERE)
    lease.path.write_bytes(lease.record.to_bytes())
    return lease


def watch(leases: LeaseFolder, clock: Clock, seconds: float, step: float = 5.0, number: int = 1) -> Standing:
    """What is seen in the end by one who looks every few seconds."""
    end, standing = clock.now + seconds, leases.standing("00000", number)
    while clock.now < end:
        clock.now += step
        standing = leases.standing("00000", number)
    return standing


def test_a_unit_is_taken_once(tmp_path: Path, clock: Clock) -> None:
    one, two = folder(tmp_path, clock), folder(tmp_path, clock)
    lease = take(one)
    assert two.take("00000", 1) is None
    assert lease.holds()
    assert [path.name for path in tmp_path.iterdir()] == ["00000.lease-0001"]
    assert lease.path.stat().st_size == LEASE_BYTES
    assert highest_numbers(["00000.lease-0001", "00000.lease-0003", "00000.json", "x"]) == {"00000": 3}


def test_many_threads_want_one_unit(tmp_path: Path, clock: Clock) -> None:
    won, ready = list[Lease](), threading.Barrier(8)

    def want() -> None:
        leases = folder(tmp_path, clock)
        ready.wait()
        lease = leases.take("00000", 1)
        if lease is not None:
            won.append(lease)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_of_two_that_one_file_was_given_to_one_holds_it(tmp_path: Path, clock: Clock, monkeypatch: Any) -> None:
    """A file system on which O_EXCL excludes nobody."""
    opened = os.open
    one, two = folder(tmp_path, clock), folder(tmp_path, clock)
    first = take(one)
    monkeypatch.setattr(os, "open", lambda path, flags, *mode: opened(path, flags & ~os.O_EXCL, *mode))
    second = take(two)
    assert (first.holds(), second.holds()) == (False, True)


def test_who_beats_keeps_it_and_who_does_not_loses_it(tmp_path: Path, clock: Clock) -> None:
    lease, observer = elsewhere(take(folder(tmp_path, clock))), folder(tmp_path, clock)
    for _ in range(40):
        assert watch(observer, clock, 50) == Standing.HELD
        lease.beat()
    assert watch(observer, clock, 55) == Standing.HELD
    assert watch(observer, clock, 15) == Standing.FREE
    assert lease.holds()
    heir = take(observer, number=2)
    assert (lease.holds(), heir.holds()) == (False, True)


def test_a_holder_that_comes_back_late_beats_for_nobody(tmp_path: Path, clock: Clock) -> None:
    lease, observer = elsewhere(take(folder(tmp_path, clock))), folder(tmp_path, clock)
    watch(observer, clock, 70)
    heir = take(observer, number=2)
    lease.beat()
    lease.fail("late")
    assert heir.holds()
    assert folder(tmp_path, clock).standing("00000", 2) == Standing.HELD
    observer.sweep({"00000": 2})
    lease.beat()
    assert (lease.holds(), heir.holds(), list(tmp_path.iterdir())) == (False, False, [])


def test_an_observer_that_was_stopped_has_seen_nothing(tmp_path: Path, clock: Clock) -> None:
    """It looks, sleeps for hours, and looks again: the beats in between are not known to have been missing."""
    elsewhere(take(folder(tmp_path, clock)))
    observer = folder(tmp_path, clock)
    assert observer.standing("00000", 1) == Standing.HELD
    clock.now += 10_000
    assert observer.standing("00000", 1) == Standing.HELD


@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
def test_no_clock_of_the_day_and_no_time_of_a_file(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    day = time.time
    monkeypatch.setattr(time, "time", lambda: day() + skew)
    lease, observer = elsewhere(take(folder(tmp_path, clock))), folder(tmp_path, clock)
    os.utime(lease.path, (day() - skew, day() - skew))
    assert watch(observer, clock, 55) == Standing.HELD
    lease.beat()
    os.utime(lease.path, (0, 0))
    assert watch(observer, clock, 55) == Standing.HELD
    assert watch(observer, clock, 20) == Standing.FREE
    source = (Path(module.__file__).read_text(), Path(module.__file__).with_name("processes.py").read_text())
    assert not any(word in text for text in source for word in ("time.time(", "mtime", "st_ctime", "flock", "datetime"))


def test_a_process_of_this_machine_that_has_ended_loses_its_leases_at_once(tmp_path: Path, clock: Clock) -> None:
    code = (
        "import sys; from pathlib import Path; from d4m_fast.storage.leases import *;"
        "lease = LeaseFolder(Path(sys.argv[1]), Pulse(Timing())).take('00000', 1);"
        "lease.work(); sys.stdout.write('held')"
    )
    observer = folder(tmp_path, clock)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.read() == "held"
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has reaped it
        assert list(holders(tmp_path)) == []
        assert observer.standing("00000", 1) == Standing.TRIED
    assert folder(tmp_path, clock).standing("00000", 1) == Standing.TRIED
    assert failures(tmp_path, "00000", 1) == [f"process {child.pid} on {this_process().host} ended or hung"]


def test_whose_number_was_given_out_again(tmp_path: Path) -> None:
    ours = this_process()
    assert not is_dead(ours)
    assert is_dead(replace(ours, start="1"))
    assert not is_dead(replace(ours, machine="another", start="1"))


def test_a_unit_that_fails_three_times_is_set_aside_until_it_is_forgiven(tmp_path: Path, clock: Clock) -> None:
    leases = folder(tmp_path, clock)
    for number in range(1, MOST_TRIES + 1):
        lease = take(leases, number=number)
        lease.work()
        leases.end(lease, f"reason {number}")
        expected = Standing.TRIED if number < MOST_TRIES else Standing.SET_ASIDE
        assert folder(tmp_path, clock).standing("00000", number) == expected
    assert failures(tmp_path, "00000", 3) == ["reason 1", "reason 2", "reason 3"]
    leases.forgive({"00000": 3})
    assert list(tmp_path.iterdir()) == []


def test_what_was_only_waiting_or_given_back_is_no_try(tmp_path: Path, clock: Clock) -> None:
    leases = folder(tmp_path, clock)
    lease = take(leases)
    lease.work()
    leases.end(lease)
    assert list(tmp_path.iterdir()) == []
    waiting = take(leases)
    waiting.record = replace(waiting.record, holder=replace(this_process(), start="1"))
    waiting.beat()
    assert folder(tmp_path, clock).standing("00000", 1) == Standing.FREE


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"holder": 1}', b"\xff" * 1024, b'{"holder": {}, "token": "x"}'])
def test_a_lease_cut_off_while_it_was_written_is_held_until_it_expires(
    tmp_path: Path, clock: Clock, data: bytes
) -> None:
    (tmp_path / "00000.lease-0001").write_bytes(data)
    assert LeaseRecord.from_bytes(data) is None
    observer = folder(tmp_path, clock)
    assert watch(observer, clock, 55) == Standing.HELD
    assert watch(observer, clock, 20) == Standing.FREE


def test_any_reason_fits(tmp_path: Path, clock: Clock) -> None:
    for reason in ("x" * 5000, "\u732b" * 5000, '"' * 5000):
        record = LeaseRecord(this_process(), "token", Phase.FAILED, 7, reason)
        assert len(record.to_bytes()) == LEASE_BYTES
        again = LeaseRecord.from_bytes(record.to_bytes())
        assert again is not None
        assert (again.phase, again.beat, again.holder) == (Phase.FAILED, 7, this_process())


def test_beats_stop_where_nothing_moves_and_go_on_where_it_does(tmp_path: Path) -> None:
    clock = Clock()
    pulse = Pulse(Timing(0.12), clock)
    leases = LeaseFolder(tmp_path, pulse, clock)
    with pulse:
        lease = take(leases)
        beats(lease)
        clock.now += 1.3
        stopped = settled(lease)
        with pulse.busy():
            beats(lease)
        clock.now += 1.3
        assert settled(lease) > stopped
        pulse.tick()
        beats(lease)
    assert list(tmp_path.iterdir()) == []


def beats(lease: Lease, more: int = 3) -> None:
    """Wait until it has beaten as often again."""
    end, last = time.monotonic() + 60, lease.record.beat
    while lease.record.beat < last + more:
        assert time.monotonic() < end
        time.sleep(0.002)


def settled(lease: Lease) -> int:
    """The beat at which it stands still."""
    while True:
        last = lease.record.beat
        time.sleep(0.1)
        if lease.record.beat == last:
            return last


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_nothing_can_be_written_it_says_so(tmp_path: Path, clock: Clock) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PreflightError, match="permission denied"):
        folder(tmp_path, clock).take("00000", 1)


def test_a_full_disk_leaves_no_empty_lease(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch, pytest.raises(PreflightError, match="no space left"):
        patch.setattr(os, "pwrite", full)
        folder(tmp_path, clock).take("00000", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_lease_is_plain_json(tmp_path: Path, clock: Clock) -> None:
    lease = take(folder(tmp_path, clock))
    value = json.loads(lease.path.read_text())
    assert value["holder"]["pid"] == os.getpid()
    assert (value["phase"], value["beat"]) == ("waiting", 0)
