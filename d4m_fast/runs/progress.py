"""How far a run is, read off its directory and its latents: for a driver whose processes do the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from d4m_fast.runs.commit import read_of_run, recorded_units
from d4m_fast.runs.latents import INDEX
from d4m_fast.runs.plan import Plan
from d4m_fast.runs.ranges import FOLDER, ranges_of
from d4m_fast.storage import files
from d4m_fast.storage.state import PLAN


@dataclass
class RunProgress:
    """Images that are encoded and made by now, by all processes.

    Attributes:
        fingerprint: of the run.
        artifacts: where latents are kept.
        items: number of the source's images.
    """

    path: Path
    fingerprint: str
    artifacts: Path
    items: int
    ipc: int

    def plan(self) -> Plan | None:
        """Return the run's plan; None before it has one."""
        saved = read_of_run(self.path / "plan.json", PLAN, self.fingerprint)
        return None if saved is None else Plan.from_json(saved)

    def encoded(self, plan: Plan) -> int:
        """Return how many images are encoded."""
        latents = self.artifacts / "latents" / str(plan.latents)
        if files.is_there(latents / INDEX):
            return self.items
        done = recorded_units(path.name for path in files.entries(latents / FOLDER))
        ranges = ranges_of(self.items, plan.encode_batch)
        return sum(ranges[number].stop - ranges[number].start for number in done)

    def made(self, plan: Plan) -> int:
        """Return how many images are committed."""
        done = recorded_units(path.name for path in files.entries(self.path / "groups"))
        return sum(len(group.classes) * self.ipc for group in plan.groups if group.id in done)

    def images(self, plan: Plan) -> int:
        """Return how many images the run will have."""
        return sum(len(group.classes) for group in plan.groups) * self.ipc
