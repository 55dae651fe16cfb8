"""Place of a process that works on a run: its directories, and the others beside it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from d4m_fast.runs.claims import Seat
from d4m_fast.runs.plan import Group, Plan
from d4m_fast.runs.shards import Shard
from d4m_fast.storage import files
from d4m_fast.storage.leases import Timing
from d4m_fast.storage.locks import locked


@dataclass(frozen=True)
class Place:
    """Directories, neighbours and part of a process that works on a run.

    Attributes:
        path: of the run directory.
        artifacts: where latents are kept.
        is_helper: one of several processes of a driver, which has looked through the run, goes on where one of them
            fails, and finishes the run.
        shard: the part of the run that is made here; None is all of it.
    """

    path: Path
    artifacts: Path
    timing: Timing = field(default_factory=Timing)
    seat: Seat = field(default_factory=Seat)
    is_helper: bool = False
    shard: Shard | None = None

    def groups(self, plan: Plan) -> tuple[Group, ...]:
        """Return the groups of a plan that are to be made here."""
        return plan.groups if self.shard is None else self.shard.groups(plan)

    def locked(self) -> AbstractContextManager[None]:
        """Lock the run directory, made if need be, waiting for others that plan or finish."""
        return locked(files.make_directory(self.path), wait=self.timing.patience)
