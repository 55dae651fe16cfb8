"""Actors of a Ray cluster on one run: each leases its work from the shared run directory, as local workers do.

The run directory and the artifacts must lie where every node finds them. Nothing but a line of seconds comes back
through Ray. Actors are started while the cluster has room for them, so that nodes may come and go; what one that died
was doing is another's, by its leases. Ray restarts none by itself: deaths are counted here.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from d4m_fast.errors import D4MError, PreflightError
from d4m_fast.flow.progress import Listener, Unheard
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.job import Job, prepare
from d4m_fast.launch.progress import show
from d4m_fast.pipeline import finish, forgive, open_run, work
from d4m_fast.runs.claims import Seat
from d4m_fast.runs.place import Place
from d4m_fast.runs.run import RunDirectory

ANSWER_SECONDS = 10.0  # that a cluster's head may take to answer; Ray itself asks for ten minutes and more
POLL_SECONDS = 0.5  # between looks at the actors, and at how far the run is
MOST_DEATHS = 20  # of actors in a row, without an image made in between
AUTH_MODE, AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
# Ray's switch for clusters on Windows and macOS. Off, on any system, a node takes the loopback address for its own, and
# servers of a node that has it listen on no other (Ray 2.60; ray.init replaces 127.0.0.1 by the host's address).
CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def distill_by_ray(
    job: Job, place: Place, address: str, actors: int | None, watch: Stopwatch, progress: Listener
) -> dict[str, Any]:
    """Do what is missing of a run by actors of a Ray cluster, and return its summary.

    Args:
        address: "local" starts a cluster on this machine, bound to its loopback interface, with a token; "auto" is the
            one that this machine belongs to; else an address as `ray.init` takes it.
        actors: at most so many; None is as many as the cluster has room for.

    Raises:
        PreflightError: Ray is not installed, or the cluster cannot be reached.
        D4MError: why the run cannot go on; what is committed stays.
    """
    run, summary = open_run(job, place)
    if summary is not None:
        return summary
    forgive(run, place)
    ray = _connected(address, actors)
    try:
        troupe = _Troupe(ray, job, replace(place, path=place.path.absolute(), is_helper=True), actors, watch, progress)
        show(job, place, run, progress, troupe.serve())
    finally:
        ray.shutdown()
    return finish(job, place, watch)


def _connected(address: str, actors: int | None) -> Any:
    if address == "local":
        # Whoever reaches a cluster without a token may run code on it. Set before the import, which reads them.
        os.environ.setdefault(CLUSTERS, "0")
        os.environ.setdefault(AUTH_MODE, "token")
        os.environ.setdefault(AUTH_TOKEN, secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise PreflightError("--ray: Ray is missing; pip install 'd4m-fast[ray]'") from error
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "configure_logging": False}
    if address == "local":
        options["include_dashboard"] = False
        options |= {} if actors is None else {"num_cpus": actors}
    _require_answer(address)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise PreflightError(f"--ray {address}: {first_line}; start a cluster with ray start, or use local") from error
    return ray


def _require_answer(address: str) -> None:
    """Refuse HOST:PORT, also behind "ray://", at which nobody listens; other addresses are resolved by Ray."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise PreflightError(f"--ray {address}: nobody answers ({error}); start a cluster with ray start") from error


@dataclass
class _Troupe:
    """The actors of a driver."""

    ray: Any
    job: Job
    place: Place
    most: int | None
    watch: Stopwatch
    progress: Listener
    running: dict[Any, Any] = field(default_factory=dict)  # what each actor will return -> the actor
    started: int = 0
    deaths: int = 0
    is_done: bool = False

    def serve(self) -> Iterator[None]:
        """Keep actors at work until one finds that nothing is left, and all have ended; yields now and then.

        Raises:
            D4MError: what an actor failed of, if no other group would do better.
        """
        while not self.is_done or self.running:
            if not self.is_done:
                self._start_where_there_is_room()
            ended, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS) if self.running else ([], [])
            for reference in ended:
                self._take(reference)
            yield

    def _start_where_there_is_room(self) -> None:
        threads = 1 if self.job.config.threads is None else self.job.config.threads
        resource, each = ("CPU", threads) if self.job.device.type == "cpu" else ("GPU", 1)
        room = int(self.ray.available_resources().get(resource, 0)) // each
        allowed = room if self.most is None else min(room, self.most - len(self.running))
        cpus, gpus = (each, 0) if resource == "CPU" else (0, 1)
        # Restarts are counted here: Ray would repeat a task that an actor has died of.
        options = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        for _ in range(allowed):
            actor = options(_Actor).remote()
            ranks = max(1, int(self.ray.cluster_resources().get(resource, 1)) // each)
            place = replace(self.place, seat=Seat(self.started % ranks, ranks))
            self.started += 1
            self.running[actor.work.remote(self.job.config, place, threads)] = actor

    def _take(self, reference: Any) -> None:
        """Take what an actor returns, or its death."""
        actor = self.running.pop(reference)
        try:
            answer = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.deaths += 1
            first_line = str(error).strip().splitlines()[0]
            if self.deaths >= MOST_DEATHS:
                raise PreflightError(f"--ray: {self.deaths} actors died in a row, the last: {first_line}") from error
            self.progress.say(f"an actor died ({first_line}); others go on")
            return
        self.ray.kill(actor)
        if isinstance(answer, D4MError):
            raise answer
        self.is_done, self.deaths = True, 0
        self.watch.add(*answer)


class _Actor:
    """A worker in a process of the cluster."""

    def work(self, config: Any, place: Place, threads: int) -> tuple[dict[str, float], dict[str, float]] | D4MError:
        """Work until nothing is left; return seconds and waits, or why the run cannot go on."""
        import torch

        torch.set_num_threads(threads)
        watch = Stopwatch()
        try:
            with watch("open"):
                job = prepare(config, artifacts=place.artifacts, run=place.path)
            work(job, place, RunDirectory(place.path, job.identity), watch, Unheard())
        except D4MError as error:
            return error
        return watch.seconds, watch.waits
