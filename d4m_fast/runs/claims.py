"""Claims of one process: units of work, class groups or source items, that nobody has done and that it leases."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from d4m_fast.runs.commit import recorded_units
from d4m_fast.runs.plan import Group
from d4m_fast.storage import files
from d4m_fast.storage.lease_files import LEASE_FILE, failures, highest_numbers
from d4m_fast.storage.leases import Lease, LeaseFolder, Pulse, Standing


class Claims(Protocol):
    """The groups that a process may write and commit."""

    def group_of(self, class_id: int) -> Group: ...

    def holds(self, unit: int) -> bool: ...

    def may_write(self, unit: int) -> bool: ...

    def end(self, unit: int) -> None: ...


class OwnGroups:
    """Groups that no other process can want."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._by_class = _by_class(groups)

    def group_of(self, class_id: int) -> Group:
        return self._by_class[class_id]

    def holds(self, unit: int) -> bool:
        return True

    def may_write(self, unit: int) -> bool:
        return True

    def end(self, unit: int) -> None:
        """Nothing is to be given back."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Place of a process among those that work on a run together: each begins elsewhere, so that they meet late."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """Groups that are taken, and clustered, together at most; one always is.

    Attributes:
        bytes_of: of a group's latents.
        latent_bytes, classes: of a bundle.
    """

    bytes_of: Callable[[Group], int]
    latent_bytes: int
    classes: int


class UnitClaims:
    """The units that this process holds: each has a number, and a file `<number>.json` in the folder once it is done.

    Args:
        units: those it may take.
        done: to which those are added that are seen to be done by now.
    """

    def __init__(self, folder: Path, units: Sequence[int], done: set[int], pulse: Pulse, seat: Seat) -> None:
        self._folder = folder
        self._leases = LeaseFolder(folder, pulse)
        self._pulse = pulse
        self._ranks = seat.ranks
        first = seat.rank * len(units) // seat.ranks
        self._units = [*units[first:], *units[:first]]
        self._done = done
        self._held = dict[int, Lease]()
        self._seen = dict[int, tuple[float, bool]]()
        self._set_aside = set[int]()
        self._numbers = dict[str, int]()

    def holds(self, unit: int) -> bool:
        """Return whether nobody has taken over a unit that this process took."""
        lease = self._held.get(unit)
        return lease is not None and lease.holds()

    def may_write(self, unit: int) -> bool:
        """Return whether a unit's files may still be written, from what was seen a moment ago; that is progress, too.

        A look for each image would be a third of all that a server of files has to do.
        """
        self._pulse.tick()
        now = time.monotonic()  # which goes on while a process is stopped
        seen_at, held = self._seen.get(unit, (0.0, False))
        if not held or now - seen_at > self._pulse.timing.poll:
            held = self.holds(unit)
            self._seen[unit] = now, held
        return held

    def end(self, unit: int) -> None:
        """Let go of a unit that is done, by this process or by one that took it over, or is the other's to do."""
        lease = self._held.pop(unit, None)
        self._seen.pop(unit, None)
        if lease is not None:
            self._pulse.drop(lease)
        if lease is not None and self._is_done(unit):
            self._leases.sweep({lease.unit: lease.number})

    def number_of(self, unit: int) -> int:
        """Return the number of the lease by which a unit is held."""
        return self._held[unit].number

    def work(self, units: Sequence[int]) -> None:
        """Say that these are worked on now: if this process dies, it counts as a try of theirs."""
        for unit in units:
            if unit in self._held and not self._held[unit].is_worked_on:
                self._held[unit].work()

    def wait(self, units: Sequence[int]) -> None:
        """Say that these are held for later."""
        for unit in units:
            if unit in self._held:
                self._held[unit].wait()

    def first_worked_on(self) -> int | None:
        """Return the unit that is worked on for the longest time; None if none is, or if it was lost meanwhile."""
        return next((unit for unit, lease in self._held.items() if lease.is_worked_on), None)

    def give_back(self, failure: str | None = None) -> list[int]:
        """Give back all that is held; `failure` counts as a try of those that were worked on, which are returned."""
        failed = list[int]()
        for unit, lease in list(self._held.items()):
            counts = failure is not None and lease.is_worked_on
            if counts:
                failed.append(unit)
            self._leases.end(lease, failure if counts else None)
            del self._held[unit]
        return failed

    def take(self) -> Iterator[int]:
        """Take units, each when it is asked for: those of which no try has failed, or else one of which one has."""
        count, lost = 0, set[int]()  # to others, who were faster
        while free := [unit for unit in self._free() if unit not in lost]:
            for unit in free:
                if not self._take(unit):
                    lost.add(unit)
                    break  # and look again, for others have gone on since
                count += 1
                yield unit
        if not count and (unit_tried := self.retry()) is not None:
            yield unit_tried

    def retry(self) -> int | None:
        """Take a unit of which a try has failed; None if there is none now.

        It is to be worked on alone: whether it, or what was worked on beside it, was at fault then shows.
        """
        return next(filter(self._take, self._standing({Standing.TRIED})), None)

    def look(self) -> int:
        """Note what was done by now, and return how many units are neither done nor set aside."""
        self._standing(set())
        return sum(unit not in self._done and unit not in self._set_aside for unit in self._units)

    @property
    def set_aside(self) -> set[int]:
        """The units that failed too often."""
        return self._set_aside

    def forgive(self) -> None:
        """Let the units that were set aside be tried again."""
        numbers = highest_numbers(self._names())
        ours = {_name(unit) for unit in self._units}
        self._leases.forgive({name: number for name, number in numbers.items() if name in ours})
        self._set_aside.clear()

    def _take(self, unit: int) -> bool:
        lease = self._leases.take(_name(unit), self._numbers.get(_name(unit), 0) + 1)
        if lease is None:
            return False
        self._held[unit] = lease
        if self._is_done(unit):  # it was done, and its lease swept, after we looked
            self.end(unit)
            return False
        return True

    def _is_done(self, unit: int) -> bool:
        if not files.is_there(self._folder / f"{_name(unit)}.json"):
            return False
        self._done.add(unit)
        return True

    def _free(self) -> list[int]:
        """Look at the folder, and return the units that are not done and of which no try has failed.

        As long as there are some without any lease, the leases of the others are not read: most are of processes at
        work, and reading them all for every unit is more than all else that many processes do here.
        """
        unleased = [unit for unit in self._missing() if _name(unit) not in self._numbers]
        return unleased if unleased else self._standing({Standing.FREE})

    def _missing(self) -> list[int]:
        """Look at the folder, and return the units that are not done, and not held by this process."""
        names = self._names()
        self._done |= recorded_units(names)
        self._numbers = highest_numbers(names)
        return [unit for unit in self._units if unit not in self._done and unit not in self._held]

    def _standing(self, standings: set[Standing]) -> list[int]:
        """Look at the folder and at its leases, and return the units that are not done and stand so."""
        units = list[int]()
        for unit in self._missing():
            number = self._numbers.get(_name(unit), 0)
            standing = self._leases.standing(_name(unit), number) if number else Standing.FREE
            if standing == Standing.SET_ASIDE:
                self._set_aside.add(unit)
            else:
                self._set_aside.discard(unit)
            if standing in standings:
                units.append(unit)
        return units

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._folder)
        except FileNotFoundError:  # it is removed once all units are done
            self._done.update(self._units)
            return []


class GroupClaims(UnitClaims):
    """The groups of a run that this process holds.

    Args:
        groups: those it may take: of the plan, or of a shard of it.
        committed: ids of groups, to which those are added that are seen to be committed by now.
    """

    def __init__(
        self, run: Path, groups: Sequence[Group], committed: set[int], pulse: Pulse, seat: Seat = Seat()
    ) -> None:
        super().__init__(run / "groups", [group.id for group in groups], committed, pulse, seat)
        self.replan(groups)

    def replan(self, groups: Sequence[Group]) -> None:
        """Take the same groups with other batches."""
        self._groups = {group.id: group for group in groups}
        self._by_class = _by_class(groups)

    def group_of(self, class_id: int) -> Group:
        return self._by_class[class_id]

    def bundles(self, limits: BundleLimits) -> Iterator[list[Group]]:
        """Take groups of which no try has failed, a bundle at a time, each when it is asked for, until there are none.

        Bundles become smaller towards the end, so that all processes end together.
        """
        while bundle := self._take_bundle(limits):
            yield bundle

    def retried(self) -> Iterator[list[Group]]:
        """Take groups of which a try has failed, one when it is asked for, as `retry`."""
        while (unit := self.retry()) is not None:
            yield [self._groups[unit]]

    def _take_bundle(self, limits: BundleLimits) -> list[Group]:
        free = [self._groups[unit] for unit in self._free()]
        most = max(1, len(free) // (2 * self._ranks))
        bundle, latent_bytes, classes = list[Group](), 0, 0
        for group in free:
            latent_bytes += limits.bytes_of(group)
            classes += len(group.classes)
            is_full = latent_bytes > limits.latent_bytes or classes > limits.classes or len(bundle) == most
            if bundle and is_full:
                break
            if self._take(group.id):
                bundle.append(group)
        return bundle


def _name(unit: int) -> str:
    return f"{unit:05d}"


def _by_class(groups: Sequence[Group]) -> dict[int, Group]:
    by_class = dict[int, Group]()
    for group in groups:
        by_class |= dict.fromkeys(group.classes, group)
    return by_class


def failures_of(folder: Path, units: Sequence[int]) -> Mapping[int, str]:
    """Return why the last try of each of these failed, by its number; without a try, that there was none."""
    reasons = dict[int, str]()
    numbers = highest_numbers(path.name for path in files.entries(folder))
    for unit in units:
        tries = failures(folder, _name(unit), numbers.get(_name(unit), 0))
        reasons[unit] = tries[-1] if tries else "nobody has made it"
    return reasons


def sweep_leases(folder: Path) -> None:
    """Remove what leases are left in a folder all of whose units are done."""
    for path in files.entries(folder):
        if LEASE_FILE.fullmatch(path.name):
            files.unlink(path)
