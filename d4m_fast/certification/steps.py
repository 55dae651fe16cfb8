"""All steps of a certification, in their order."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from d4m_fast.certification import engines, reference
from d4m_fast.certification.agreement import agree
from d4m_fast.certification.engines import Engine
from d4m_fast.certification.request import Request
from d4m_fast.certification.speed import measure
from d4m_fast.certification.step import Check, Findings, Step
from d4m_fast.engine.networks import Networks
from d4m_fast.export.export import export
from d4m_fast.export.job import exported, hindrance_of_export
from d4m_fast.measure.calls import NETWORK_OF, NetworkStage
from d4m_fast.runs.exports import CERTIFICATE_FILE
from d4m_fast.storage.state import CERTIFICATE, require_state

Say = Callable[[str], None]
NO_CUPY = "CuPy is not installed: pip install 'd4m-fast[gpu]'"


class Opened:
    """The engine that was opened last, and the reference: steps in a row share them."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._engine: tuple[Engine, Networks] | None = None
        self._reference: reference.Reference | None = None

    def engine(self, engine: Engine) -> Networks:
        if self._engine is None or self._engine[0] != engine:
            self._engine = None  # before the next takes its memory
            if engine.kind == "compiled":
                torch.compiler.reset()
            self._engine = engine, engines.open_engine(engine, self._request)
        return self._engine[1]

    def reference(self) -> reference.Reference:
        if self._reference is None:
            self._reference = reference.read_reference(self._request)
        return self._reference


def all_steps(request: Request, say: Say) -> tuple[list[Step], dict[str, str]]:
    """The steps this machine can run, and, by name, why others it could run are left out."""
    opened = Opened(request)
    steps = [Step("reference", partial(_reference, request), partial(request.key, "reference"))]
    missing: dict[str, str] = {}
    for engine in engines.engines_of(request):
        reason = engines.hindrance(engine, request.device)
        if reason is None and engine.exported:
            reason = hindrance_of_export(request.model, request.schedule)
        if reason is None:
            steps += _steps_of(engine, opened, request, say)
        else:
            missing[engine.name] = reason
    if request.device.type != "cpu" and importlib.util.find_spec("cupy") is None:
        missing["kernels"] = NO_CUPY
    elif request.device.type != "cpu":
        steps.append(Step("kernels", partial(kernels, request.device), partial(request.key, "kernels")))
    return steps, missing


def _steps_of(engine: Engine, opened: Opened, request: Request, say: Say) -> list[Step]:
    """Export, agreement and the three stages' speed of one engine."""

    def key(*parts: object) -> str | None:
        artifact = engines.artifact_of(engine, request)
        if engine.exported and artifact is None:
            return None
        return request.key(engine.name, None if artifact is None else artifact.sha256, *parts)

    timed = request.config.seconds, request.config.batches
    export_step = Step(f"export-{engine.name}", partial(_export, engine, request, say), partial(key, "export"))
    after = (export_step.name,) if engine.exported else ()
    parity = Step(
        f"parity-{engine.name}",
        lambda: agree(engine, opened.engine(engine), opened.reference(), request),
        partial(key, "parity"),
        ("reference", *after),
    )
    speeds = [
        Step(
            f"speed-{engine.name}-{stage}", partial(_speed, engine, stage, opened, request), partial(key, *timed), after
        )
        for stage in NETWORK_OF
    ]
    return [*([export_step] if engine.exported else []), parity, *speeds]


def _reference(request: Request) -> Findings:
    images = reference.make_reference(request).probe.images
    black = [i for i, image in enumerate(images) if image.max() == 0]
    checks = (Check("no image is black", not black, f"images {black}" if black else ""),)
    distinct = len(np.unique(images.reshape(len(images), -1), axis=0))
    return Findings(checks, {"images": len(images), "distinct": distinct})


def _export(engine: Engine, request: Request, say: Say) -> Findings:
    """Export what is not yet; compare again what was certified elsewhere."""
    job = engines.job_of(engine, request)
    if exported(job) is None:
        for _ in export(job, say):
            pass
    certificate = require_state(job.path / CERTIFICATE_FILE, CERTIFICATE)
    status = certificate["status"]
    parts = certificate["components"].values()
    built = [part["engine"] for part in parts if "engine" in part]
    figures: dict[str, Any] = {
        "status": status,
        "psnr_worst": certificate["images"]["psnr_worst"],
        "bytes": sum(entry["bytes"] for entry in certificate["files"].values()),
        "build_seconds": sum(engine["seconds"] for engine in built) if built else None,
        "build_peak_bytes": max((engine["peak_bytes"] for engine in built), default=None),
        "files": certificate["files"],
    }
    return Findings((Check("its export is certified", status == "certified", status),), figures)


def _speed(engine: Engine, stage: NetworkStage, opened: Opened, request: Request) -> Findings:
    return measure(engine, stage, opened.engine(engine), request)


def kernels(device: torch.device) -> Findings:
    """The CUDA kernels of k-means against NumPy, and their timings."""
    from d4m_fast.kernels.selfcheck import selfcheck
    from d4m_fast.measure.kernels import time_kernels

    gpu = 0 if device.index is None else device.index
    found = selfcheck(gpu=gpu)
    checks = tuple(Check(c["name"], bool(c["passed"]), f"error {c['error']}") for c in found["checks"])
    return Findings((Check("there are checks", bool(checks)), *checks), {"timings": time_kernels(gpu)})
