"""The export stage: four networks to ONNX and, if asked for, to TensorRT; compared with PyTorch; certified."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d4m_fast import __version__
from d4m_fast.engine.artifacts import REJECTED, Artifact, find, installed_versions, versions
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.runtime import Tensors, device_name, full_fp32
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.engine.trial import trial_resolution, try_networks
from d4m_fast.engine.trt import inspect
from d4m_fast.engine.trt_api import Api
from d4m_fast.errors import ModelError, PreflightError
from d4m_fast.export.calibration import activation_maxima
from d4m_fast.export.comparison import compare_with_reference, measure_speed, open_candidate, record_comparison
from d4m_fast.export.hoist import hoist_context
from d4m_fast.export.job import ExportJob
from d4m_fast.export.mixed import to_mixed_precision
from d4m_fast.export.probe import Probe, record_probe
from d4m_fast.export.to_onnx import export_onnx, opset_of
from d4m_fast.export.to_trt import BuildOptions, Say, build_engine, check_engine
from d4m_fast.flow.stream import Stream
from d4m_fast.measure.memory import peak_of_process
from d4m_fast.measure.parity import resized
from d4m_fast.runs.exports import CERTIFICATE_FILE, digests
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked
from d4m_fast.storage.state import CERTIFICATE, require_state, write_state

# Packages whose versions stand in the certificate: those that write the files, and those that run them.
EXPORTED_WITH = ("onnxruntime", "torch", "diffusers", "transformers", "onnx", "onnxscript")
RUN_WITH = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt-cu13", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-libs",),
}


def export(job: ExportJob, say: Say) -> Stream[str]:
    """Write and compare the set; yields the name of each step as it is done.

    Args:
        say: told the phases of engine builds.

    Raises:
        ModelError: it is not near enough to PyTorch; its files stay under a rejected name.
        PreflightError: no version of what would run it is on record.
    """
    _require_versions(_library(job))  # refused before it is built, not after
    engines = 0 if job.api is None else len(COMPONENTS)
    return Stream(len(COMPONENTS) + engines + 3, _export(job, say))


def certify(job: ExportJob) -> Stream[str]:
    """Compare an exported set on this device, and write its certificate anew.

    Raises:
        ModelError: there is none, or it is not near enough to PyTorch.
        DamageError: its files changed since they were exported.
    """
    # Versions are written anew: a set exported on one machine is certified under those of another.
    artifact = find(job.key, job.artifacts)
    if artifact is None:
        raise ModelError(f"{job.path}: nothing exported there; run d4m-fast export without --certify")
    artifact.check_bytes(job.model.sha256)
    certificate = {**artifact.certificate, "versions": _require_versions(artifact.certificate["library"])}

    def steps() -> Iterator[str]:
        with locked(job.path):
            reference, probe = _open_reference(job)
            yield "reference"
            yield from _compare(job, certificate, reference, probe)
        _refuse_rejected(job)

    return Stream(3, steps())


def _export(job: ExportJob, say: Say) -> Iterator[str]:
    with contextlib.ExitStack() as locks:
        locks.enter_context(locked(files.make_directory(job.path)))
        if job.api is not None:
            # One build of engines per node: each wants most of a GPU's memory, and times its kernels.
            builds = job.artifacts / "engines" / f".building-on-{platform.node()}"
            locks.enter_context(locked(files.make_directory(builds)))
        # The certificate goes first and comes last: without one, no run takes the files for an export.
        (job.path / CERTIFICATE_FILE).unlink(missing_ok=True)
        _remove_temporary(job.path)
        reference, probe = _open_reference(job)
        yield "reference"
        reports: dict[Component, dict[str, Any]] = {}
        for component in COMPONENTS:
            reports[component] = _write_onnx(job, component, probe.calls[component])
            yield component
        if job.api is not None:
            for component in COMPONENTS:
                reports[component]["engine"] = _write_engine(job, job.api, component, reports[component], say)
                yield f"{component} engine"
        yield from _compare(job, _new_certificate(job, reports), reference, probe)
    _refuse_rejected(job)


def _open_reference(job: ExportJob) -> tuple[Networks, Probe]:
    """Open diffusers' own networks in fp32 PyTorch, and record their calls on real images."""
    torch.set_num_threads(job.config.threads)
    full_fp32()  # no TF32, which would be further off than the limits
    networks = open_networks(job.model.path, job.device, torch.float32, reference=True)
    try_networks(job.model, networks, trial_resolution(job.model))
    return networks, record_probe(job.workload, networks, job.config.images)


def _write_onnx(job: ExportJob, component: Component, calls: Sequence[Tensors]) -> dict[str, Any]:
    """Export one network, in fp16 by way of fp32; returns what its certificate says of it."""
    final = job.path / f"{component}.onnx"
    exact = final if job.key.precision == "fp32" else job.path / f".fp32-{component}.onnx"
    metadata = {"model_sha256": job.model.sha256, "resolution": str(job.key.resolution)}
    for name, version in _exporter_versions().items():
        metadata[f"version {name}"] = version
    with files.refusing(job.path):
        report = export_onnx(
            job.model.path,
            component,
            exact,
            sizes=job.sizes,
            opset=opset_of(job.key.engine, component),
            static_batch=job.config.static_batch,
            metadata=metadata,
            for_ort=job.key.engine == "onnx",
        )
    job.require_countable(component, report.elements_per_row)
    network = {**asdict(report), "static_rows": job.rows(component)}
    if exact != final:
        maxima = activation_maxima(exact, _calibration_inputs(job, component, calls), threads=job.config.threads)
        network["mixed"] = asdict(to_mixed_precision(exact, final, maxima))
        _remove_temporary(job.path)
    # A fixed batch stays one graph, so that ONNX Runtime can replay it as one CUDA graph.
    if component == "unet" and job.key.engine == "onnx" and job.config.static_batch is None:
        network["context"] = hoist_context(final, job.path / "unet.context.onnx")
    return network


def _remove_temporary(path: Path) -> None:
    """Remove what only stands in on the way to fp16, here or in an export that was killed."""
    for leftover in path.glob(".fp32-*"):
        leftover.unlink()
    for folder in (*path.glob(".rounded-*"), *path.glob(".hoist-*")):
        shutil.rmtree(folder)


def _calibration_inputs(
    job: ExportJob, component: Component, calls: Sequence[Tensors]
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Yield the calls' inputs, with as many samples as the exported file takes."""
    batch = job.config.static_batch
    for call in calls:
        fitting = call if batch is None else resized(component, call, batch)
        yield {name: x.cpu().numpy() for name, x in fitting.items()}


def _library(job: ExportJob) -> str:
    return "onnxruntime" if job.api is None else job.api.flavour


def _require_versions(library: str) -> dict[str, str]:
    """Return the installed versions of what runs the set.

    Raises:
        PreflightError: none is on record, so that another could not be told from it.
    """
    packages = RUN_WITH[library]
    installed = installed_versions(*packages)
    if not installed:
        raise PreflightError(f"no version of {library} on record: install it from {' or '.join(packages)}")
    return installed


def _exporter_versions() -> dict[str, str]:
    return {"d4m-fast": __version__, **versions(*EXPORTED_WITH)}


def _write_engine(job: ExportJob, api: Api, component: Component, network: dict[str, Any], say: Say) -> dict[str, Any]:
    """Build the engine of an exported network; returns what its certificate says of it."""
    for_other_gpus = bool(job.config.targets)
    options = BuildOptions(
        job.config.precision,
        job.config.targets,
        job.config.level,
        timing_cache=None if for_other_gpus else job.path.parent / f"timing-{'-'.join(job.key.targets)}.cache",
    )
    path = job.path / f"{component}.engine"
    report = build_engine(
        api,
        job.path / f"{component}.onnx",
        path,
        component,
        job.sizes,
        job.profiles(component, network["elements_per_row"]),
        options,
        attentions=network["operators"].get("Attention", 0),
        say=lambda phase: say(f"{component}: {phase}"),
    )
    engine = asdict(report)
    if not for_other_gpus:  # it can be opened here, and its layers read
        sides = job.score_sides() if component == "unet" else []
        stream = int(torch.cuda.current_stream(job.device).cuda_stream)
        information = inspect(api, path, component, stream)
        engine["inspected"] = check_engine(information, job.config.precision, sides, str(path))
    return engine


def _new_certificate(job: ExportJob, networks: dict[Component, dict[str, Any]]) -> dict[str, Any]:
    """Return a certificate with everything but the comparison, of files that are on the disk for good."""
    names = []
    for pattern in ("*.onnx", "*.onnx.data", "*.engine"):
        names += [file.name for file in job.path.glob(pattern)]
    names.sort()
    # On the disk before a certificate names them.
    for name in names:
        files.sync_file(job.path / name)
    library = _library(job)
    return {
        "status": "unverified",
        "engine": job.key.engine,
        "precision": job.key.precision,
        "resolution": job.key.resolution,
        "static_batch": job.config.static_batch,
        "targets": list(job.key.targets),
        "library": library,
        "model": job.model.name,
        "revision": job.model.revision,
        "model_sha256": job.model.sha256,
        "versions": _require_versions(library),
        "exported_with": _exporter_versions(),
        "options": asdict(job.config),
        "peak_bytes": peak_of_process(),
        "files": digests(job.path, names),
        "components": networks,
    }


def _compare(job: ExportJob, certificate: dict[str, Any], reference: Networks, probe: Probe) -> Iterator[str]:
    """Fill in the comparison and write the certificate."""
    activations: dict[Component, float] = {}
    if job.key.precision == "fp16":
        for component in COMPONENTS:
            activations[component] = certificate["components"][component]["mixed"]["largest_fp16_activation"]
    with open_candidate(job, Artifact(job.path, certificate)) as (networks, description):
        certificate |= {"device": device_name(job.device), "compared": description, "speed": None}
        comparison = compare_with_reference(job, reference, networks, probe, activations)
        record_comparison(certificate, comparison)
        yield "parity"
        if job.runnable:
            certificate["speed"] = measure_speed(reference, networks, probe, job.device, job.config.threads)
        yield "speed"
    certificate["unverified"] = [] if job.runnable else [f"it has not run on its own device, only {description}"]
    certificate["status"] = (
        "rejected" if certificate["reasons"] else "unverified" if certificate["unverified"] else "certified"
    )
    write_state(job.path / CERTIFICATE_FILE, CERTIFICATE, certificate)


def _refuse_rejected(job: ExportJob) -> None:
    """Move a rejected set out of the way, under a name that says so.

    Raises:
        ModelError: it is rejected.
    """
    reasons = require_state(job.path / CERTIFICATE_FILE, CERTIFICATE)["reasons"]
    if not reasons:
        return
    rejected = job.path.with_name(job.path.name + REJECTED)
    shutil.rmtree(rejected, ignore_errors=True)
    os.rename(job.path, rejected)
    files.sync_directory(job.path.parent)
    raise ModelError(f"{rejected}: rejected; {'; '.join(reasons)}")
