"""The export stage: four networks to ONNX and, if asked for, to TensorRT; compared with PyTorch; certified."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from d4m_fast import __version__
from d4m_fast.engine.artifacts import REJECTED, Artifact, find, versions
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.runtime import Tensors, device_name, full_fp32
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.engine.trial import trial_resolution, try_networks
from d4m_fast.engine.trt import inspect
from d4m_fast.errors import ModelError, PreflightError
from d4m_fast.export.hoist import hoist_context
from d4m_fast.export.job import ExportJob
from d4m_fast.export.judge import GUIDANCE, candidate, judge, speed
from d4m_fast.export.mixed import activation_maxima, to_mixed_precision
from d4m_fast.export.probe import Probe, probe
from d4m_fast.export.to_onnx import export_onnx, opset_of
from d4m_fast.export.to_trt import BuildOptions, Say, build_engine, check_engine
from d4m_fast.flow.stream import Stream
from d4m_fast.measure.parity import resized
from d4m_fast.runs.exports import CERTIFICATE_FILE, digests
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked
from d4m_fast.storage.state import CERTIFICATE, require_state, write_state

EXPORTED_WITH = ("onnxruntime", "torch", "diffusers", "transformers", "onnx", "onnxscript")
RUN_WITH = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt-cu13", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-libs",),
}


def export(job: ExportJob, say: Say) -> Stream[str]:
    """Write the set; yields the name of each step as it is done. `say` is told what engine builds are at.

    Raises:
        ModelError: it is not near enough to PyTorch; its files stay under a rejected name.
        PreflightError: no version of what would run it is on record.
    """
    _run_with(_library(job))  # what would have no version on record is refused before it is built
    engines = 0 if job.api is None else len(COMPONENTS)
    return Stream(len(COMPONENTS) + engines + 3, _export(job, say))


def certify(job: ExportJob) -> Stream[str]:
    """Compare a set that is there, on the device that is here, and write its certificate anew.

    Raises:
        ModelError: there is none, or it is not near enough to PyTorch.
        DamageError: its files changed since they were exported.
    """
    # Versions are written anew: a set exported on one machine is certified under those of another.
    artifact = find(job.key, job.artifacts)
    if artifact is None:
        raise ModelError(f"{job.path}: nothing exported there; run d4m-fast export without --certify")
    artifact.check_bytes(job.model.sha256)
    return Stream(3, _certify(job, {**artifact.certificate, "versions": _run_with(artifact.certificate["library"])}))


def _export(job: ExportJob, say: Say) -> Iterator[str]:
    with locked(files.make_directory(job.path)), _one_build(job):
        (job.path / CERTIFICATE_FILE).unlink(missing_ok=True)
        _sweep(job.path)
        reference, recorded = _reference(job)
        yield "reference"
        parts: dict[Component, dict[str, Any]] = {}
        for component in COMPONENTS:
            parts[component] = _write_onnx(job, component, recorded.calls[component])
            yield component
        for component in COMPONENTS if job.api is not None else ():
            parts[component]["engine"] = _write_engine(job, component, parts[component], say)
            yield f"{component} engine"
        yield from _judged(job, _begin(job, parts), reference, recorded)
    _refuse_rejected(job)


@contextlib.contextmanager
def _one_build(job: ExportJob) -> Iterator[None]:
    """One build of engines per node: each wants most of a GPU's memory, and times its kernels.

    Raises:
        RunDirectoryError: another is running.
    """
    if job.api is None:
        yield
        return
    with locked(files.make_directory(job.artifacts / "engines" / f".building-on-{platform.node()}")):
        yield


def _certify(job: ExportJob, certificate: dict[str, Any]) -> Iterator[str]:
    with locked(job.path):
        reference, recorded = _reference(job)
        yield "reference"
        yield from _judged(job, certificate, reference, recorded)
    _refuse_rejected(job)


def _reference(job: ExportJob) -> tuple[Networks, Probe]:
    """diffusers' own networks in fp32 PyTorch, and what they were asked on real images."""
    torch.set_num_threads(job.config.threads)
    full_fp32()
    networks = open_networks(job.model.path, job.device, torch.float32, reference=True)
    try_networks(job.model, networks, trial_resolution(job.model))
    sizes = {"resolution": job.resolution, "count": job.config.images, "batch": job.config.images}
    return networks, probe(job.source, networks, job.schedule, guidance=GUIDANCE, **sizes)


def _write_onnx(job: ExportJob, component: Component, calls: list[Tensors]) -> dict[str, Any]:
    """Export one network, in fp16 by way of fp32; what there is to say of it in the certificate."""
    final = job.path / f"{component}.onnx"
    whole = final if job.key.precision == "fp32" else job.path / f".fp32-{component}.onnx"
    with files.refusing(job.path):
        report = export_onnx(
            job.model.path,
            component,
            whole,
            sizes=job.model.sizes(job.resolution),
            opset=opset_of(job.key.engine, component),
            static_batch=job.config.static_batch,
            metadata=_metadata(job),
            for_ort=job.key.engine == "onnx",
        )
    job.require_countable(component, report.elements_per_row)
    part = {**asdict(report), "static_rows": job.rows(component)}
    if whole != final:
        feeds = ({name: x.cpu().numpy() for name, x in call.items()} for call in _fitting(job, component, calls))
        maxima = activation_maxima(whole, feeds, threads=job.config.threads)
        part["mixed"] = asdict(to_mixed_precision(whole, final, maxima))
        _sweep(job.path)
    if component == "unet" and job.key.engine == "onnx" and job.config.static_batch is None:  # else: one CUDA graph
        part["context"] = hoist_context(final, job.path / "unet.context.onnx")
    return part


def _sweep(path: Path) -> None:
    """Remove what only stands in on the way to fp16, here or in an export that was killed."""
    for leftover in path.glob(".fp32-*"):
        leftover.unlink()
    for folder in (*path.glob(".twin-*"), *path.glob(".hoist-*")):
        shutil.rmtree(folder)


def _fitting(job: ExportJob, component: Component, calls: list[Tensors]) -> Iterator[Tensors]:
    """The calls, with as many samples as the exported file takes."""
    batch = job.config.static_batch
    yield from calls if batch is None else (resized(component, call, batch) for call in calls)


def _metadata(job: ExportJob) -> dict[str, str]:
    made_with = {f"version {name}": version for name, version in _versions().items()}
    return {"model_sha256": job.model.sha256, "resolution": str(job.resolution), **made_with}


def _library(job: ExportJob) -> str:
    return "onnxruntime" if job.api is None else job.api.flavour


def _run_with(library: str) -> dict[str, str]:
    """Versions of what runs the set.

    Raises:
        PreflightError: none is on record, so that another could not be told from it.
    """
    found = {name: version for name, version in versions(*RUN_WITH[library]).items() if version != "not installed"}
    if not found:
        raise PreflightError(f"no version of {library} on record: install it from {' or '.join(RUN_WITH[library])}")
    return found


def _versions() -> dict[str, str]:
    return {"d4m-fast": __version__, **versions(*EXPORTED_WITH)}


def _write_engine(job: ExportJob, component: Component, part: dict[str, Any], say: Say) -> dict[str, Any]:
    assert job.api is not None
    ahead = bool(job.config.targets)
    options = BuildOptions(
        job.config.precision,
        job.config.targets,
        job.config.level,
        timing_cache=None if ahead else job.path.parent / f"timing-{'-'.join(job.key.targets)}.cache",
    )
    report = build_engine(
        job.api,
        job.path / f"{component}.onnx",
        job.path / f"{component}.engine",
        component,
        job.model.sizes(job.resolution),
        job.profiles(component, part["elements_per_row"]),
        options,
        attentions=part["operators"].get("Attention", 0),
        say=lambda phase: say(f"{component}: {phase}"),
    )
    found = asdict(report)
    if not ahead:
        found["inspected"] = _inspect(job, component)
    return found


def _inspect(job: ExportJob, component: Component) -> dict[str, int]:
    """Open the engine on its GPU and read what its layers write."""
    assert job.api is not None
    path = job.path / f"{component}.engine"
    sides = job.score_sides() if component == "unet" else []
    stream = int(torch.cuda.current_stream(job.device).cuda_stream)
    return check_engine(inspect(job.api, path, component, stream), job.config.precision, sides, str(path))


def _begin(job: ExportJob, parts: dict[Component, dict[str, Any]]) -> dict[str, Any]:
    """A certificate with everything but the comparison."""
    names = sorted(f.name for pattern in ("*.onnx", "*.onnx.data", "*.engine") for f in job.path.glob(pattern))
    for name in names:
        files.sync_file(job.path / name)
    library = _library(job)
    return {
        "status": "unverified",
        "engine": job.key.engine,
        "precision": job.key.precision,
        "resolution": job.resolution,
        "static_batch": job.config.static_batch,
        "targets": list(job.key.targets),
        "library": library,
        "model": job.model.name,
        "revision": job.model.revision,
        "model_sha256": job.model.sha256,
        "versions": _run_with(library),
        "exported_with": _versions(),
        "options": asdict(job.config),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "files": digests(job.path, names),
        "components": parts,
    }


def _judged(job: ExportJob, certificate: dict[str, Any], reference: Networks, recorded: Probe) -> Iterator[str]:
    """Fill in the comparison and write the certificate."""
    with candidate(job, Artifact(job.path, certificate)) as (networks, compared):
        certificate |= {"device": device_name(job.device), "compared": compared, "speed": None}
        judge(certificate, job, reference, networks, recorded)
        yield "parity"
        if job.runnable:
            certificate["speed"] = speed(reference, networks, recorded, job.device, job.config.threads)
        yield "speed"
    certificate["unverified"] = [] if job.runnable else [f"it has not run on its own device, only {compared}"]
    certificate["status"] = (
        "rejected" if certificate["reasons"] else "unverified" if certificate["unverified"] else "certified"
    )
    write_state(job.path / CERTIFICATE_FILE, CERTIFICATE, certificate)


def _refuse_rejected(job: ExportJob) -> None:
    reasons = require_state(job.path / CERTIFICATE_FILE, CERTIFICATE)["reasons"]
    if reasons:
        raise ModelError(f"{_reject(job.path)}: rejected; {'; '.join(reasons)}")


def _reject(path: Path) -> Path:
    rejected = path.with_name(path.name + REJECTED)
    shutil.rmtree(rejected, ignore_errors=True)
    os.rename(path, rejected)
    files.sync_directory(path.parent)
    return rejected
