"""Images per second of one stage on one engine: a sweep over batches, then a minute of the best of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from d4m_fast.certification.engines import Engine, failures
from d4m_fast.certification.request import Request
from d4m_fast.certification.step import Check, Findings, first_line
from d4m_fast.config.choices import FloatType
from d4m_fast.engine.artifacts import ELEMENTS
from d4m_fast.engine.memory import release
from d4m_fast.engine.networks import Networks
from d4m_fast.engine.runtime import synchronize
from d4m_fast.errors import require
from d4m_fast.export.workload import GUIDANCE
from d4m_fast.measure.calls import NETWORK_OF, NetworkStage, network_call
from d4m_fast.measure.clock import time_calls
from d4m_fast.measure.monitor import open_monitor
from d4m_fast.measure.sweep import Point, sweep

ROWS = {"encode": 1, "unet": 2, "decode": 1}  # per image; both halves of guidance
MOST_BATCH = 256
LONGEST = 5.0  # seconds of a call; no larger batch is tried then
PAYS = 1.02  # times the images per second that a doubled batch must bring
FLAT = 2  # doublings in turn that do not, before the sweep ends: one may be unlucky, or hard to share out
# Of a batch in the sweep: this share of the steady seconds, so many seconds at most, so many calls at least.
SWEEP_SHARE, SWEEP_SECONDS, SWEEP_CALLS = 0.05, 2.0, 3
ROUND = 0.5  # seconds between waits for the device
UNDER_LOAD: dict[FloatType, float] = {"fp32": 1e-4, "fp16": 3e-3}
"""Relative L2 of an engine's last answer from its own first, which other sums of the same rounding may differ by."""
Call = Callable[[], torch.Tensor]


def measure(engine: Engine, stage: NetworkStage, networks: Networks, request: Request) -> Findings:
    """Find the best batch, then run it for `request.config.seconds`.

    Its last answer is compared with its first: under load, too, an engine must answer the question it was asked.
    """
    compiled = engine.kind == "compiled"
    points = list(sweep_batches(stage, networks, request, compiled=compiled))
    best = max(points, key=lambda point: point.rate)
    call = make_call(stage, networks, request, best.batch)
    if compiled:
        torch.compiler.reset()
    first = call().clone()  # the engine may write its next answer into the same memory
    figures, last = run_steadily(call, best, request)
    error = float((last.double() - first.double()).norm() / first.double().norm())
    limit = UNDER_LOAD[engine.precision]
    checks = (
        Check("answers under load as before", error <= limit, f"relative L2 {error:.2g}, the limit is {limit:g}"),
        Check("ran as long as was asked", figures["seconds"] >= request.config.seconds, f"{figures['seconds']:.3g} s"),
    )
    flops = figures["images_per_second"] * ROWS[stage] * request.shapes.networks[NETWORK_OF[stage]].flops
    rows = []
    for point in points:
        rows.append({"batch": point.batch, "images_per_second": point.rate, "error": point.error})
    return Findings(checks, {**figures, "batch": best.batch, "flops_per_second": flops, "sweep": rows})


def sweep_batches(stage: NetworkStage, networks: Networks, request: Request, *, compiled: bool) -> Iterator[Point]:
    """Time batches from small to large, until `FLAT` in turn do not pay, or one takes too long or does not fit."""

    def measure_batch(batch: int) -> Point:
        if compiled:
            torch.compiler.reset()  # it keeps eight shapes, and then refuses
        point = _time_batch(make_call(stage, networks, request, batch), batch, request)
        if point.seconds is None and batch == batches[0]:
            raise RuntimeError(f"batch {batch}: {point.error}")
        return point

    def is_over(points: Sequence[Point]) -> bool:
        last = points[-1].seconds
        return (last is not None and last > LONGEST) or (request.config.sizes is None and _last_in_vain(points) == FLAT)

    batches = _candidate_batches(stage, request)
    return sweep(batches, measure_batch, is_over)


def _last_in_vain(points: Sequence[Point]) -> int:
    """Count the last batches that did not pay."""
    in_vain, best = 0, 0.0
    for point in points:
        in_vain = in_vain + 1 if point.rate < PAYS * best else 0
        best = max(best, point.rate)
    return in_vain


def _candidate_batches(stage: NetworkStage, request: Request) -> tuple[int, ...]:
    """Return the requested batches, or powers of two, while no activation reaches 2^31 elements."""
    largest = max(1, ELEMENTS // (ROWS[stage] * request.shapes.networks[NETWORK_OF[stage]].largest))
    sizes = request.config.sizes
    if sizes is None:
        sizes = tuple(2**i for i in range(MOST_BATCH.bit_length()))
    candidates = tuple(batch for batch in sizes if batch <= largest)
    require(
        bool(candidates), f"--batches {request.config.batches}: {stage} takes {largest:,} images at most; give less"
    )
    return candidates


def _time_batch(call: Call, batch: int, request: Request) -> Point:
    seconds = min(SWEEP_SECONDS, SWEEP_SHARE * request.config.seconds)
    try:
        # Two calls that are not counted: the first may compile.
        times = time_calls(call, request.device, seconds=seconds, calls=SWEEP_CALLS, warmups=2)
        return Point(batch, statistics.median(times))
    except failures() as error:
        release(request.device)  # what the failed batch had, for the steps that follow
        return Point(batch, None, first_line(error))


def run_steadily(call: Call, best: Point, request: Request) -> tuple[dict[str, Any], torch.Tensor]:
    """Call back to back, with a wait for the device every half second; returns figures and the last answer."""
    assert best.seconds is not None
    calls_per_round, rounds = max(1, int(ROUND / best.seconds)), list[float]()
    with open_monitor(request.device, request.config.threads) as monitor:
        start = time.perf_counter()
        while time.perf_counter() - start < request.config.seconds:
            before = time.perf_counter()
            for _ in range(calls_per_round):
                last = call()
            synchronize(request.device)
            rounds.append(time.perf_counter() - before)
        seconds = time.perf_counter() - start
    images = len(rounds) * calls_per_round * best.batch
    # Above 0 where the second half was slower: the device grew hot, or something else ran.
    half = len(rounds) // 2
    drift = statistics.mean(rounds[half:]) / statistics.mean(rounds[:half]) - 1 if half else 0.0
    figures = {"images_per_second": images / seconds, "seconds": seconds, "images": images, "drift": drift}
    return {**figures, **monitor.summary()}, last


def make_call(stage: NetworkStage, networks: Networks, request: Request, batch: int) -> Call:
    """Return one call of a stage on random tensors, on the device already."""
    sizes = request.model.sizes(request.workload.resolution)
    return network_call(stage, networks, sizes, batch, guidance=GUIDANCE, inputs_on=request.device)
