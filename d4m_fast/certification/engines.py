"""Engines that a machine can run the networks on: PyTorch, torch.compile, ONNX Runtime, TensorRT, in fp32 or fp16."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product, starmap
from typing import Literal, get_args

import torch

from d4m_fast.certification.request import Request
from d4m_fast.config.choices import ExportedEngine, FloatType
from d4m_fast.engine.artifacts import Artifact, Key, find
from d4m_fast.engine.engines import ENGINES, EngineSpec
from d4m_fast.engine.networks import Networks, open_exported, open_networks
from d4m_fast.engine.runtime import compute_capability, device_name
from d4m_fast.errors import D4MError, ModelError, PreflightError
from d4m_fast.export.job import ExportJob, prepare_export
from d4m_fast.export.to_onnx import require_onnx

Kind = Literal["torch", "compiled", ExportedEngine]
DTYPES: dict[FloatType, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Engine:
    """Library and precision that compute the networks."""

    kind: Kind
    precision: FloatType

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.precision}"

    @property
    def exported(self) -> bool:
        """Whether it runs what `export` writes."""
        return self.spec.exported

    @property
    def spec(self) -> EngineSpec:
        """The entry of the table of engines; torch.compile is PyTorch's own."""
        return ENGINES["torch" if self.kind == "compiled" else self.kind]


def engines_of(request: Request) -> list[Engine]:
    """Return the engines that a device of this kind could run, whether or not they are installed."""
    if request.device.type != "cpu":
        return list(starmap(Engine, product(get_args(Kind), DTYPES)))
    engines = []
    for kind in get_args(Kind):
        engine = Engine(kind, "fp32")
        if not engine.spec.built_per_gpu and (kind != "compiled" or request.config.compile):
            engines.append(engine)
    return engines


def hindrance(engine: Engine, device: torch.device) -> str | None:
    """Return why an engine cannot run here; None if it can."""
    try:
        engine.spec.require_library(device, engine.spec.library)
        if engine.exported:
            require_onnx()  # TensorRT, too, builds from ONNX files
    except PreflightError as error:
        return str(error)
    return None


def job_of(engine: Engine, request: Request) -> ExportJob:
    """Return the export that an engine runs.

    Raises:
        D4MError: it cannot be made here.
    """
    assert engine.kind != "torch" and engine.kind != "compiled"
    return prepare_export(request.export_config(engine.kind, engine.precision), request.artifacts)


def artifact_of(engine: Engine, request: Request) -> Artifact | None:
    """Return the set that an engine runs, if that has been exported; unchecked."""
    if not engine.exported:
        return None
    targets = (compute_capability(request.device),) if engine.spec.built_per_gpu else ()
    key = Key(request.model.sha256, engine.kind, engine.precision, request.workload.resolution, None, targets)
    return find(key, request.artifacts)


def open_engine(engine: Engine, request: Request) -> Networks:
    """Open the networks on this engine and the request's device.

    Raises:
        ModelError: not exported, or not certified, here.
        DamageError: its files changed since they were certified.
    """
    if not engine.exported:
        dtype, compiled = DTYPES[engine.precision], engine.kind == "compiled"
        return open_networks(request.model.path, request.device, dtype, compiled=compiled)
    artifact = artifact_of(engine, request)
    if artifact is None:
        raise ModelError(f"{engine.name}: nothing certified to run; its export failed")
    artifact.check(request.model.sha256, device_name(request.device))
    return open_exported(request.model, request.workload.resolution, artifact, request.device)


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of failing engines, by the library; ONNX Runtime's errors have no base of their own."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError:
        return (D4MError, RuntimeError, MemoryError)
    return (D4MError, RuntimeError, MemoryError, state.Fail, state.RuntimeException, state.InvalidArgument)
