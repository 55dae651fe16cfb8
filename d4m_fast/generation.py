"""The generation of a run's groups by one process: cluster, generate, write, in one stream over all it can have."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from d4m_fast.engine.generate import generate
from d4m_fast.engine.memory import release
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.prototypes import GROUP_BYTES, Clustering, cluster_group
from d4m_fast.errors import UNFORESEEN, D4MError, OutOfMemoryError
from d4m_fast.flow.progress import Listener
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.job import Job
from d4m_fast.runs.claims import BundleLimits, GroupClaims
from d4m_fast.runs.place import Place
from d4m_fast.runs.plan import Group, Plan
from d4m_fast.runs.records import Prototypes
from d4m_fast.runs.run import RunDirectory
from d4m_fast.storage.leases import Pulse

CLASSES_PER_THREAD = 4  # that are clustered together: enough to keep all threads at work
_OF_A_GROUP = frozenset({1, 5})  # exit codes of errors that another group need not have


@dataclass(frozen=True)
class Generation:
    """The generation of groups, one stream over as many as can be had, and the ends of that stream."""

    job: Job
    place: Place
    run: RunDirectory
    pulse: Pulse
    watch: Stopwatch
    progress: Listener
    networks: Networks
    claims: GroupClaims
    clustering: Clustering
    counted: set[int] = field(default_factory=set)  # groups whose images the progress has, or that were there before

    def images(self, plan: Plan) -> Iterator[object]:
        """Generate groups until none is left, and yield something for each image that is made, here or elsewhere."""
        place, job = self.place, self.job
        self.counted.update(self.run.committed(plan))
        while True:
            try:
                yield from self._stream(plan, self.claims.bundles(self._limits()))
                for bundle in self.claims.retried():
                    yield from self._stream(plan, iter([bundle]))
            except OutOfMemoryError as error:
                plan = self._with_smaller_batch(plan, error)
            except D4MError as error:
                failed_groups = self.claims.give_back(str(error))
                if not place.is_helper or not failed_groups or error.exit_code not in _OF_A_GROUP:
                    raise
                self.progress.say(f"group {failed_groups[0]} failed: {error}")
            except UNFORESEEN as error:
                self.claims.give_back(f"{type(error).__name__}: {error}")
                raise
            release(job.device)
            left = self.claims.look()
            yield from self._made_elsewhere(plan)
            if not left:
                return
            self.pulse.tick()
            time.sleep(place.timing.poll)

    def _stream(self, plan: Plan, bundles: Iterator[list[Group]]) -> Iterator[object]:
        """Make and write the images of the groups in bundles, which are taken as late as they are needed."""
        job, watch, waiting = self.job, self.watch, deque[list[Group]]()

        def groups() -> Iterator[Group]:
            for bundle in bundles:
                waiting.append(bundle)
                yield from bundle

        def prototypes() -> Iterator[Prototypes]:
            while waiting:
                yield from self._prototypes(waiting.popleft())

        classes = sum(len(group.classes) for group in plan.groups)
        with Workers(watch) as workers:
            clustered = Stream(classes, prototypes()).watched(watch, "cluster")
            samples = generate(
                self.run.save_prototypes(clustered),
                groups(),
                self.networks,
                job.schedule,
                job.config,
                image_size=job.image_size,
                workers=workers,
                watch=watch,
            )
            rows = self.run.write(samples, plan, self.claims, self.clustering.images_of, job.config.format, workers)
            for row in rows:
                self.counted.add(self.claims.group_of(row["class_id"]).id)
                yield row
                yield from self._made_elsewhere(plan)

    def _prototypes(self, bundle: Sequence[Group]) -> Iterator[Prototypes]:
        """Cluster the classes of a bundle together; each of its groups is worked on from its first prototype on."""
        pulse, job = self.pulse, self.job
        clustered = cluster_group(job.classes_of(bundle), self.clustering)
        units = [group.id for group in bundle]
        self.claims.work(units)
        for group in bundle:
            for _ in group.classes:
                with pulse.busy() if job.config.kmeans_on == "cpu" else pulse.ticking():
                    prototypes = next(clustered)  # the first makes all
                if prototypes.info.id == bundle[0].classes[0]:
                    self.claims.wait(units)
                self.claims.work([group.id])
                yield prototypes

    def _limits(self) -> BundleLimits:
        latents, job = self.clustering.latents, self.job
        classes = CLASSES_PER_THREAD * job.threads if job.config.kmeans_on == "cpu" else len(job.source.classes)
        return BundleLimits(lambda group: sum(map(latents.bytes_of, group.classes)), GROUP_BYTES, classes)

    def _made_elsewhere(self, plan: Plan) -> Iterator[object]:
        """Yield something for each image of groups that other processes have committed since."""
        committed = self.run.committed(plan)
        if len(committed) > len(self.counted):
            for number in sorted(committed - self.counted):
                self.counted.add(number)
                yield from range(self.clustering.images_of(plan.groups[number]))

    def _with_smaller_batch(self, plan: Plan, error: OutOfMemoryError) -> Plan:
        """Change the plan on the disk, as it is by now, and return it."""
        at = self.claims.first_worked_on()
        self.claims.give_back()
        with self.place.locked():
            current = self.run.require_plan()
            smaller = current.with_smaller_batch(
                error, self.run.committed(current), None if at is None else plan.groups[at]
            )
            if smaller is not current:
                self.run.save_plan(smaller)
        self.claims.replan(self.place.groups(smaller))
        self.progress.say(f"{error}; going on with batches of {smaller.out_of_memory[-1]['now']}")
        return smaller
