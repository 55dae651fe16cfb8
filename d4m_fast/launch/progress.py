"""Progress of a run, read off its directory and its latents: for a driver whose processes do the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from d4m_fast.flow.progress import Listener
from d4m_fast.flow.stream import Stream
from d4m_fast.job import Job
from d4m_fast.runs.commit import recorded_units
from d4m_fast.runs.latents import INDEX
from d4m_fast.runs.place import Place
from d4m_fast.runs.plan import Plan
from d4m_fast.runs.ranges import FOLDER, ranges_of
from d4m_fast.runs.run import RunDirectory
from d4m_fast.storage import files

_END: Any = object()  # of an iterator, which yields anything but this


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
        most, sizes = self.job.config.ipc, dict[int, int]()
        images = Counter(item.class_id for item in self.job.source.items)
        for group in self.place.groups(self.plan):
            is_fewer = self.job.config.small_classes == "fewer"
            sizes[group.id] = sum(min(most, images[number]) if is_fewer else most for number in group.classes)
        return sizes

    def encoded(self) -> int:
        """Return how many images are encoded."""
        latents = self.place.artifacts / "latents" / str(self.plan.latents)
        if files.is_there(latents / INDEX):
            return sum(self.range_sizes.values())
        numbers = recorded_units(path.name for path in files.entries(latents / FOLDER))
        return sum(self.range_sizes.get(number, 0) for number in numbers)

    def made(self) -> int:
        """Return how many images are committed."""
        numbers = recorded_units(path.name for path in files.entries(self.place.path / "groups"))
        return sum(self.group_sizes.get(number, 0) for number in numbers)


def show(job: Job, place: Place, run: RunDirectory, progress: Listener, looks: Iterator[None]) -> None:
    """Show how far a run is, as long as its processes are looked after.

    Args:
        looks: yields between looks at the processes, and ends with the last of them.
    """
    plan = run.saved_plan()
    while plan is None and next(looks, _END) is not _END:
        plan = run.saved_plan()
    if plan is not None:
        state = RunProgress(job, place, plan)
        _show_stage("encode", progress, looks, sum(state.range_sizes.values()), state.encoded)
        _show_stage("distill", progress, looks, sum(state.group_sizes.values()), state.made)
    for _ in looks:
        pass


def _show_stage(label: str, progress: Listener, looks: Iterator[None], total: int, count: Callable[[], int]) -> None:
    """Show how far a stage is until all is done, or every process has ended."""
    before = count()

    def images() -> Iterator[None]:
        shown = before
        while shown < total and next(looks, _END) is not _END:
            now = count()
            yield from [None] * (now - shown)
            shown = max(shown, now)

    if before < total:
        progress.follow(label, Stream(total - before, images()))
