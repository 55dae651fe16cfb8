"""Seconds of calls: one, many of one, or several that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from d4m_fast.engine.runtime import synchronize

Call = Callable[[], object]


def time_call(call: Call, device: torch.device) -> float:
    """Return the seconds of one call; the device has nothing else to do before it, and is done after it."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def time_calls(call: Call, device: torch.device, *, seconds: float, calls: int, warmups: int = 0) -> list[float]:
    """Return the seconds of each of at least so many calls, and of more until they took so many seconds together.

    Args:
        warmups: calls before these, which are not counted: the first ones may compile, or fill caches.
    """
    for _ in range(warmups):
        time_call(call, device)
    times: list[float] = []
    while len(times) < calls or sum(times) < seconds:
        times.append(time_call(call, device))
    return times


def alternate(calls: Mapping[str, Call], device: torch.device, *, rounds: int, pause: float) -> dict[str, float]:
    """Return the median seconds of each call; they take turns, so that what slows the machine slows all of them.

    Args:
        pause: seconds before each turn, and then comes a call that is not counted: the threads of the runtime that
            has just run would otherwise still be spinning on the cores of the next.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(pause)
            time_call(call, device)
            times[name].append(time_call(call, device))
    return {name: statistics.median(values) for name, values in times.items()}
