"""Leases: files that say which process works on what, without locks, clocks of several machines, or times of files.

A lease on a unit of work, say `00012`, is a numbered file, `00012.lease-0001`, that is made only where there is none
(O_EXCL). The highest number holds the unit. Its holder rewrites the file with a counter, its beat, from a thread, as
long as the work makes progress; observers watch the counter by their own monotonic clock, and take the next number once
it stood still for `Timing.lease` seconds. A process that has ended on this machine is known by its number and its
start, and loses its leases at once. A holder looks whether a higher number has come before it commits.

Where O_EXCL lets two make one file (it does on no file system we know), each reads back whose words are in it.
"""

from __future__ import annotations

import contextlib
import enum
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from d4m_fast.storage import files
from d4m_fast.storage.lease_files import LeaseRecord, Phase, failures, is_ended, lease_file, read_lease, read_record
from d4m_fast.storage.processes import this_process

MOST_TRIES = 3  # that fail, before a unit is set aside


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that leases go by.

    Attributes:
        lease: without a beat, after which another takes over.
        beat: between beats; a dozen of them may be late.
        stall: without progress, after which the beats stop: ten times as long, for one call of a network may take
            minutes.
    """

    lease: float = 60.0

    @property
    def beat(self) -> float:
        return self.lease / 12

    @property
    def stall(self) -> float:
        return 10 * self.lease

    @property
    def patience(self) -> float:
        """Seconds to wait for a lock of a run, which others hold while they plan."""
        return 10 * self.lease

    @property
    def poll(self) -> float:
        """Seconds between looks at what others do."""
        return min(self.beat, 1.0)


class Standing(enum.Enum):
    """State of a unit for an observer, who may take it or not."""

    FREE = "nobody holds it"
    TRIED = "nobody holds it, and an earlier try failed"
    SET_ASIDE = "it failed too often"
    HELD = "somebody works on it"


@dataclass(slots=True)
class _Sight:
    """Last look of an observer at a lease, and the seconds for which it has not changed."""

    number: int
    data: bytes
    looked_at: float
    unchanged: float = 0.0


@dataclass(eq=False)
class Lease:
    """A unit held by this process; `holds` says whether it still is."""

    unit: str
    number: int
    path: Path
    successor: Path
    record: LeaseRecord
    lock: threading.Lock = field(default_factory=threading.Lock)

    def holds(self) -> bool:
        """Return whether nobody has taken over; what was lost is never regained."""
        try:
            return not files.is_there(self.successor) and self._is_ours()
        except OSError:
            return False

    def work(self) -> None:
        """Say that the unit itself is worked on now, so that an end of this process is put down to it."""
        self._write(phase=Phase.WORKING)

    def wait(self) -> None:
        """Say that the unit is held for later."""
        self._write(phase=Phase.WAITING)

    @property
    def is_worked_on(self) -> bool:
        return self.record.phase == Phase.WORKING

    def beat(self) -> None:
        self._write(beat=self.record.beat + 1)

    def release(self) -> None:
        """Give the unit back, as if it had never been held."""
        with self.lock, contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink()

    def fail(self, reason: str) -> None:
        """Give the unit back, and count the try."""
        self._write(phase=Phase.FAILED, reason=reason)

    def _is_ours(self) -> bool:
        record = LeaseRecord.from_bytes(files.read_regular(self.path))
        return record is not None and record.token == self.record.token

    def _write(self, **changes: Any) -> None:
        """Rewrite the file, where it is still there: a run that is finished has no leases.

        A disk that is full, or a server that is away, is met by what commits; a beat is lost meanwhile.
        """
        with self.lock, contextlib.suppress(OSError):
            self.record = replace(self.record, **changes)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # no O_CREAT
            try:
                os.pwrite(descriptor, self.record.to_bytes(), 0)
            finally:
                os.close(descriptor)  # which sends it to the server, where there is one


class Pulse:
    """The beats of this process's leases, from a thread, while there is progress; a context.

    `tick` is to be called at each step of the work. What takes long without steps and cannot hang is done in `busy`.
    """

    def __init__(self, timing: Timing, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.timing = timing
        self._monotonic = monotonic
        self._leases: set[Lease] = set()
        self._lock = threading.Lock()
        self._busy = 0
        self._ticked_at = monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for lease in self.leases():
            lease.release()

    def tick(self) -> None:
        self._ticked_at = self._monotonic()

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Tick before and after what is done inside."""
        self.tick()
        yield
        self.tick()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Beat inside whether or not there are ticks."""
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            self.tick()
            with self._lock:
                self._busy -= 1

    @property
    def stalled(self) -> bool:
        """Whether nothing has moved for so long that the leases are left to others."""
        return not self._busy and self._monotonic() - self._ticked_at > self.timing.stall

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.add(lease)

    def drop(self, lease: Lease) -> None:
        """Beat no more for a lease, whose end its holder has written."""
        with self._lock:
            self._leases.discard(lease)

    def leases(self) -> list[Lease]:
        """Return the leases that are held now, in the order of their units."""
        with self._lock:
            return sorted(self._leases, key=lambda lease: lease.unit)

    def _run(self) -> None:
        while not self._end.wait(self.timing.beat):
            if not self.stalled:
                for lease in self.leases():
                    lease.beat()


class LeaseFolder:
    """The leases in a directory, as one process sees them and takes them."""

    def __init__(self, path: Path, pulse: Pulse, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._pulse = pulse
        self._monotonic = monotonic
        self._sights: dict[str, _Sight] = {}

    def standing(self, unit: str, number: int) -> Standing:
        """Return what may be done with a unit whose lease has this number.

        A lease that is alive is read once per beat at most: until then it counts as held.
        """
        sight, now = self._sights.get(unit), self._monotonic()
        if sight is not None and sight.number == number and now - sight.looked_at < self._pulse.timing.beat:
            return Standing.HELD
        data = read_lease(lease_file(self.path, unit, number))
        record = LeaseRecord.from_bytes(data)
        if not is_ended(record) and not self._has_expired(unit, number, data, now):
            return Standing.HELD
        tries = len(failures(self.path, unit, number))
        return Standing.FREE if not tries else Standing.TRIED if tries < MOST_TRIES else Standing.SET_ASIDE

    def take(self, unit: str, number: int) -> Lease | None:
        """Take a unit by a lease of this number, one above the last; None where another was faster.

        Raises:
            PreflightError: no space, no permission, a read-only file system.
        """
        path = lease_file(self.path, unit, number)
        record = LeaseRecord(this_process(), secrets.token_hex(8))
        with files.refusing(path):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except (FileExistsError, FileNotFoundError):  # taken, or the whole folder is done and gone
                return None
            try:
                os.pwrite(descriptor, record.to_bytes(), 0)
            except OSError:
                os.unlink(path)
                raise
            finally:
                os.close(descriptor)
        lease = Lease(unit, number, path, lease_file(self.path, unit, number + 1), record)
        if not lease.holds():
            return None
        self._sights.pop(unit, None)
        self._pulse.add(lease)
        return lease

    def end(self, lease: Lease, failure: str | None = None) -> None:
        """Give a unit back; `failure` counts as a try that failed."""
        self._pulse.drop(lease)
        if failure is None:
            lease.release()
        else:
            lease.fail(failure)

    def forgive(self, numbers: Mapping[str, int]) -> None:
        """Let units that were set aside be tried again."""
        for unit, number in numbers.items():
            record = read_record(lease_file(self.path, unit, number))
            if is_ended(record) and len(failures(self.path, unit, number)) >= MOST_TRIES:
                self._remove(unit, number)

    def sweep(self, numbers: Mapping[str, int]) -> None:
        """Remove the leases of units that are done; one that hangs on one of them finds that it holds nothing."""
        for unit, number in numbers.items():
            self._remove(unit, number)
            self._sights.pop(unit, None)

    def _remove(self, unit: str, number: int) -> None:
        # The highest first, or one cut off in between would leave an earlier one in force.
        for earlier in range(number, 0, -1):
            with files.refusing(self.path):
                lease_file(self.path, unit, earlier).unlink(missing_ok=True)

    def _has_expired(self, unit: str, number: int, data: bytes, now: float) -> bool:
        """Note what a lease holds now, and return whether it has been so for too long.

        Of the time between two looks no more than a quarter of the whole counts: an observer that was stopped, or a
        server that was away, has seen nothing meanwhile.
        """
        sight, limit = self._sights.get(unit), self._pulse.timing.lease
        if sight is None or sight.number != number or sight.data != data:
            self._sights[unit] = _Sight(number, data, now)
            return False
        sight.unchanged += min(now - sight.looked_at, limit / 4)
        sight.looked_at = now
        return sight.unchanged > limit
