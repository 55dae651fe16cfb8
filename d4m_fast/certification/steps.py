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


class OpenEngines:
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
    """Return the steps this machine can run, and, by name, why others it could run are left out."""
    open_engines = OpenEngines(request)
    steps = [Step("reference", partial(_reference, request), partial(request.key, "reference"))]
    missing: dict[str, str] = {}
    for engine in engines.engines_of(request):
        reason = engines.hindrance(engine, request.device)
        if reason is None and engine.exported:
            reason = hindrance_of_export(request.workload)
        if reason is None:
            steps += _engine_steps(engine, open_engines, request, say)
        else:
            missing[engine.name] = reason
    if request.device.type != "cpu" and importlib.util.find_spec("cupy") is None:
        missing["kernels"] = NO_CUPY
    elif request.device.type != "cpu":
        steps.append(Step("kernels", partial(kernels, request.device), partial(request.key, "kernels")))
    return steps, missing


def _engine_steps(engine: Engine, open_engines: OpenEngines, request: Request, say: Say) -> list[Step]:
    """Return the export, the agreement and the three stages' speed of one engine."""

    def key(*dependencies: object) -> str | None:
        artifact = engines.artifact_of(engine, request)
        if engine.exported and artifact is None:
            return None  # not exported yet, so that no record can be of it
        return request.key(engine.name, None if artifact is None else artifact.sha256, *dependencies)

    def measure_agreement() -> Findings:
        return agree(engine, open_engines.engine(engine), open_engines.reference(), request)

    def measure_speed(stage: NetworkStage) -> Findings:
        return measure(engine, stage, open_engines.engine(engine), request)

    steps: list[Step] = []
    needs: tuple[str, ...] = ()
    if engine.exported:
        export_step = Step(f"export-{engine.name}", partial(_export, engine, request, say), partial(key, "export"))
        steps, needs = [export_step], (export_step.name,)
    steps.append(Step(f"parity-{engine.name}", measure_agreement, partial(key, "parity"), ("reference", *needs)))
    for stage in NETWORK_OF:
        speed_key = partial(key, request.config.seconds, request.config.batches)
        steps.append(Step(f"speed-{engine.name}-{stage}", partial(measure_speed, stage), speed_key, needs))
    return steps


def _reference(request: Request) -> Findings:
    images = reference.make_reference(request).probe.images
    black = [i for i, image in enumerate(images) if image.max() == 0]
    check = Check("no image is black", not black, f"images {black}" if black else "")
    distinct = len(np.unique(images.reshape(len(images), -1), axis=0))
    return Findings((check,), {"images": len(images), "distinct": distinct})


def _export(engine: Engine, request: Request, say: Say) -> Findings:
    """Export the networks unless that is done, and compare a set again that was certified elsewhere."""
    job = engines.job_of(engine, request)
    if exported(job) is None:
        for _ in export(job, say):
            pass
    certificate = require_state(job.path / CERTIFICATE_FILE, CERTIFICATE)
    status = certificate["status"]
    networks = certificate["components"].values()
    builds = [network["engine"] for network in networks if "engine" in network]
    figures: dict[str, Any] = {
        "status": status,
        "psnr_worst": certificate["images"]["psnr_worst"],
        "bytes": sum(entry["bytes"] for entry in certificate["files"].values()),
        "build_seconds": sum(build["seconds"] for build in builds) if builds else None,
        "build_peak_bytes": max((build["peak_bytes"] for build in builds), default=None),
        "files": certificate["files"],
    }
    return Findings((Check("its export is certified", status == "certified", status),), figures)


def kernels(device: torch.device) -> Findings:
    """Check the CUDA kernels of k-means against NumPy, and time them."""
    from d4m_fast.kernels.selfcheck import selfcheck
    from d4m_fast.measure.kernels import time_kernels

    gpu = 0 if device.index is None else device.index
    report = selfcheck(gpu=gpu)
    checks = [Check("there are checks", bool(report["checks"]))]
    for check in report["checks"]:
        checks.append(Check(check["name"], bool(check["passed"]), f"error {check['error']}"))
    return Findings(tuple(checks), {"timings": time_kernels(gpu)})
