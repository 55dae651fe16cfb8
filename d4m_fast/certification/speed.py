"""Images per second of one stage on one engine: a sweep over batches, then the best of them for a minute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from d4m_fast.certification.engines import Engine, failures
from d4m_fast.certification.monitor import open_monitor
from d4m_fast.certification.request import Request
from d4m_fast.certification.step import Check, Findings, first_line
from d4m_fast.config import FloatType, require
from d4m_fast.engine.artifacts import ELEMENTS
from d4m_fast.engine.networks import Networks
from d4m_fast.export.judge import GUIDANCE

Stage = Literal["encode", "unet", "decode"]
STAGES: tuple[Stage, ...] = ("encode", "unet", "decode")
TRACED = {"encode": "vae_encoder", "unet": "unet", "decode": "vae_decoder"}
ROWS = {"encode": 1, "unet": 2, "decode": 1}  # per image; both halves of guidance
MOST_BATCH = 256
LONGEST = 5.0  # seconds of a call; a larger batch than that is not tried
PAYS = 1.02  # times the images per second that a doubled batch must bring
FLAT = 2  # doublings in turn that do not, before the sweep ends: one may be unlucky, or hard to share out
SWEEP_SHARE, SWEEP_SECONDS, SWEEP_CALLS = 0.05, 2.0, 3
ROUND = 0.5  # seconds between waits for the device
UNDER_LOAD: dict[FloatType, float] = {"fp32": 1e-4, "fp16": 3e-3}
"""Relative L2 of an engine's last answer from its own first, which other sums of the same rounding may differ by."""
Call = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Point:
    """One batch of a sweep: median seconds of a call, or why there are none."""

    batch: int
    seconds: float | None
    error: str = ""

    @property
    def rate(self) -> float:
        return 0.0 if self.seconds is None else self.batch / self.seconds


def measure(engine: Engine, stage: Stage, networks: Networks, request: Request) -> Findings:
    """Find the best batch, then run it for `request.config.seconds`.

    Its last answer is compared with its first: under load, too, an engine must answer the question it was asked.
    """
    compiled = engine.kind == "compiled"
    points = list(sweep(stage, networks, request, compiled=compiled))
    best = max(points, key=lambda point: point.rate)
    call = make_call(stage, networks, request, best.batch)
    if compiled:
        torch.compiler.reset()
    first = call().clone()
    figures, last = steady(call, best, request)
    error = float((last.double() - first.double()).norm() / first.double().norm())
    limit = UNDER_LOAD[engine.precision]
    checks = (
        Check("answers under load as before", error <= limit, f"relative L2 {error:.2g}, the limit is {limit:g}"),
        Check("ran as long as was asked", figures["seconds"] >= request.config.seconds, f"{figures['seconds']:.3g} s"),
    )
    flops = figures["images_per_second"] * ROWS[stage] * request.shapes.parts[TRACED[stage]].flops
    swept = [{"batch": p.batch, "images_per_second": p.rate, "error": p.error} for p in points]
    return Findings(checks, {**figures, "batch": best.batch, "flops_per_second": flops, "sweep": swept})


def sweep(stage: Stage, networks: Networks, request: Request, *, compiled: bool) -> Iterator[Point]:
    """Batches from small to large, until `FLAT` in turn do not pay, or one takes too long or does not fit."""
    best, flat = 0.0, 0
    for batch in _batches(stage, request):
        if compiled:
            torch.compiler.reset()  # it keeps eight shapes, and then refuses
        point = _point(make_call(stage, networks, request, batch), batch, request)
        if point.seconds is None and best == 0.0:
            raise RuntimeError(f"batch {batch}: {point.error}")
        yield point
        flat = flat + 1 if point.rate < PAYS * best else 0
        given = request.config.sizes is not None
        if point.seconds is None or point.seconds > LONGEST or (not given and flat == FLAT):
            return
        best = max(best, point.rate)


def _batches(stage: Stage, request: Request) -> tuple[int, ...]:
    """Those asked for, or powers of two, while no activation reaches 2^31 elements."""
    most = ELEMENTS // (ROWS[stage] * request.shapes.parts[TRACED[stage]].largest)
    asked = request.config.sizes
    wanted = tuple(2**i for i in range(MOST_BATCH.bit_length())) if asked is None else asked
    small = tuple(batch for batch in wanted if batch <= max(1, most))
    require(
        bool(small), f"--batches {request.config.batches}: {stage} takes {max(1, most):,} images at most; give less"
    )
    return small


def _point(call: Call, batch: int, request: Request) -> Point:
    seconds = min(SWEEP_SECONDS, SWEEP_SHARE * request.config.seconds)
    try:
        return Point(batch, statistics.median(_timed(call, seconds, request.device)))
    except failures() as error:
        _forget(request.device)
        return Point(batch, None, first_line(error))


def _timed(call: Call, seconds: float, device: torch.device) -> list[float]:
    """Of single calls, for so many seconds, after two that are not counted: the first may compile."""
    for _ in range(2):
        call()
        wait(device)
    taken: list[float] = []
    while len(taken) < SWEEP_CALLS or sum(taken) < seconds:
        start = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - start)
    return taken


def steady(call: Call, best: Point, request: Request) -> tuple[dict[str, Any], torch.Tensor]:
    """Calls back to back, with a wait for the device every half second; figures and the last answer."""
    assert best.seconds is not None
    each, rounds = max(1, int(ROUND / best.seconds)), list[float]()
    with open_monitor(request.device, request.config.threads) as monitor:
        start = time.perf_counter()
        while time.perf_counter() - start < request.config.seconds:
            before = time.perf_counter()
            for _ in range(each):
                last = call()
            wait(request.device)
            rounds.append(time.perf_counter() - before)
        seconds = time.perf_counter() - start
    made = len(rounds) * each * best.batch
    half = len(rounds) // 2
    drift = statistics.mean(rounds[half:]) / statistics.mean(rounds[:half]) - 1 if half else 0.0
    figures = {"images_per_second": made / seconds, "seconds": seconds, "images": made, "drift": drift}
    return {**figures, **monitor.summary()}, last


def make_call(stage: Stage, networks: Networks, request: Request, batch: int) -> Call:
    """One call of a stage on random tensors, on the device already; its time does not depend on their values."""
    sizes, generator = request.model.sizes(request.resolution), torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator).to(request.device)

    if stage == "encode":
        pixels = random(3, sizes["height"], sizes["width"]).clamp(-1, 1)
        return lambda: networks.vae_encoder(pixels)[0]
    latents = random(sizes["channels"], sizes["h"], sizes["w"])
    if stage == "decode":
        return lambda: networks.vae_decoder(latents)
    halves = 2 if networks.unet.doubles(GUIDANCE) else 1
    states = torch.cat([random(sizes["tokens"], sizes["width_text"]) for _ in range(halves)])
    timestep = torch.tensor(request.schedule.steps[0].timestep, device=request.device)
    return lambda: networks.unet(latents, timestep, states, GUIDANCE)


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def _forget(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.empty_cache()
