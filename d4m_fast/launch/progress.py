"""How far a run is, read off its directory and its latents: for a driver whose processes do the work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from d4m_fast.job import Job
from d4m_fast.runs.commit import recorded_units
from d4m_fast.runs.latents import INDEX
from d4m_fast.runs.place import Place
from d4m_fast.runs.plan import Plan
from d4m_fast.runs.ranges import FOLDER, ranges_of
from d4m_fast.storage import files


@dataclass(frozen=True)
class RunProgress:
    """Images that are encoded and made by now, by all processes, of the run or of the shard of it that is asked for."""

    job: Job
    place: Place
    plan: Plan

    @cached_property
    def range_sizes(self) -> dict[int, int]:
        """Number of images of each range that is to be encoded."""
        items = self.job.source.items
        class_ids = {class_id for group in self.place.groups(self.plan) for class_id in group.classes}
        sizes = dict[int, int]()
        for each in ranges_of(len(items), self.plan.encode_batch):
            if any(item.class_id in class_ids for item in items[each.start : each.stop]):
                sizes[each.number] = each.stop - each.start
        return sizes

    @cached_property
    def group_sizes(self) -> dict[int, int]:
        """Number of images of each group that is to be made."""
        return {group.id: len(group.classes) * self.job.config.ipc for group in self.place.groups(self.plan)}

    def encoded(self) -> int:
        """Return how many images are encoded."""
        latents = self.place.artifacts / "latents" / str(self.plan.latents)
        if files.is_there(latents / INDEX):
            return sum(self.range_sizes.values())
        done = recorded_units(path.name for path in files.entries(latents / FOLDER))
        return sum(self.range_sizes.get(number, 0) for number in done)

    def made(self) -> int:
        """Return how many images are committed."""
        done = recorded_units(path.name for path in files.entries(self.place.path / "groups"))
        return sum(self.group_sizes.get(number, 0) for number in done)
