"""The export stage: four networks to ONNX, each compared with PyTorch, and one certificate over all."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d4m_fast import __version__
from d4m_fast.config import ExportConfig
from d4m_fast.data import files
from d4m_fast.data.dataset import open_source
from d4m_fast.data.plan import ENCODE_BATCH, GENERATE_BATCH
from d4m_fast.data.records import Source
from d4m_fast.data.stream import Stream
from d4m_fast.engine.artifacts import CERTIFICATE, REJECTED, Artifact, Key, digests, find, versions
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.networks import Networks, open_exported, open_networks
from d4m_fast.engine.ort import require_ort
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.schedule import Schedule, open_schedule
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.errors import DamageError, ModelError
from d4m_fast.export import parity
from d4m_fast.export.probe import Probe, final_images, probe
from d4m_fast.export.to_onnx import OPSET, OnnxReport, export_onnx, require_onnx

CPU = torch.device("cpu")
IMAGES = 32
STEPS, STRENGTH, GUIDANCE = 50, 0.7, 8.0  # the reference preset's
PACKAGES = ("onnxruntime", "torch", "diffusers", "transformers", "onnx", "onnxscript")
RUN_WITH = ("onnxruntime",)
ALTERNATIONS = 5
PAUSE = 0.1  # seconds


@dataclass(frozen=True)
class ExportJob:
    """A checked request."""

    config: ExportConfig
    model: Model
    source: Source
    schedule: Schedule
    key: Key
    artifacts: Path

    @property
    def resolution(self) -> int:
        return self.key.resolution

    @property
    def path(self) -> Path:
        return self.key.path(self.artifacts)

    def rows(self, component: Component) -> int | None:
        """Rows the exported file is fixed to; guidance doubles the UNet's."""
        static = self.config.static_batch
        return static if static is None or component != "unet" else 2 * static


def prepare_export(config: ExportConfig, artifacts: Path) -> ExportJob:
    """Open what the config names.

    Raises:
        D4MError: the first thing that is wrong, before anything is written.
    """
    require_onnx()
    require_ort(CPU)
    model = open_model(config.model)
    resolution = model.resolution if config.resolution is None else config.resolution
    model.latent_shape(resolution)
    schedule = open_schedule(model.path, STEPS, STRENGTH)
    key = Key(model.sha256, "onnx", "fp32", resolution, config.static_batch)
    job = ExportJob(config, model, open_source(config.data), schedule, key, artifacts)
    weights = sum(file.stat().st_size for file in model.path.rglob("*.safetensors"))
    files.require_room(job.path, 2 * weights, "exports")  # fp32 from weights that may be stored in half precision
    return job


def export(job: ExportJob) -> Stream[str]:
    """Write the set; yields the name of each step as it is done.

    Raises:
        ModelError: it is not near enough to PyTorch; its files stay under a rejected name.
    """
    return Stream(len(COMPONENTS) + 3, _export(job))


def _export(job: ExportJob) -> Iterator[str]:
    with files.locked(files.make_directory(job.path)):
        (job.path / CERTIFICATE).unlink(missing_ok=True)
        torch.set_num_threads(job.config.threads)
        reference = open_networks(job.model.path, CPU, torch.float32)
        recorded = probe(
            job.source,
            reference,
            job.schedule,
            resolution=job.resolution,
            count=IMAGES,
            batch=IMAGES,
            guidance=GUIDANCE,
        )
        yield "reference"
        reports = {}
        for component in COMPONENTS:
            reports[component] = _write(job, component)
            yield component
        certificate = _certificate(job, reports)
        candidate = open_exported(job.model, job.resolution, Artifact(job.path, certificate), CPU)
        _judge(certificate, job, reference, candidate, recorded)
        yield "parity"
        certificate["speed"] = _speed(reference, candidate, recorded, job.config.threads)
        files.write_json(job.path / CERTIFICATE, certificate)
        yield "speed"
    if certificate["reasons"]:
        raise ModelError(f"{_reject(job.path)}: rejected; {'; '.join(certificate['reasons'])}")


def _write(job: ExportJob, component: Component) -> OnnxReport:
    final = job.path / f"{component}.onnx"
    metadata = {
        "model_sha256": job.model.sha256,
        "resolution": str(job.resolution),
        **{f"version {name}": version for name, version in _versions().items()},
    }
    with files.refusing(job.path):
        return export_onnx(
            job.model.path,
            component,
            final,
            sizes=job.model.sizes(job.resolution),
            opset=OPSET,
            static_batch=job.rows(component),
            metadata=metadata,
        )


def _versions() -> dict[str, str]:
    return {"d4m-fast": __version__, **versions(*PACKAGES)}


def _certificate(job: ExportJob, reports: dict[Component, OnnxReport]) -> dict[str, Any]:
    names = sorted(file.name for file in job.path.glob("*.onnx*"))
    for name in names:
        files.sync_file(job.path / name)
    return {
        "status": "unverified",
        "reasons": [],
        "engine": "onnx",
        "precision": "fp32",
        "device": "cpu",
        "resolution": job.resolution,
        "static_batch": job.config.static_batch,
        "model": str(job.config.model),
        "model_sha256": job.model.sha256,
        "versions": versions(*RUN_WITH),
        "exported_with": _versions(),
        "files": digests(job.path, names),
        "components": {
            component: {
                "opset": report.opset,
                "operators": report.operators,
                "static_rows": job.rows(component),
            }
            for component, report in reports.items()
        },
    }


def _judge(
    certificate: dict[str, Any], job: ExportJob, reference: Networks, candidate: Networks, recorded: Probe
) -> None:
    """Compare network by network and image by image; write what was found into the certificate."""
    found: dict[str, list[parity.Parity]] = {}
    for component in COMPONENTS:
        most = {"unet": 2 * GENERATE_BATCH, "vae_encoder": ENCODE_BATCH}.get(component, GENERATE_BATCH)
        runtimes = reference.runtime(component), candidate.runtime(component)
        found[component] = parity.compare(component, *runtimes, recorded.calls[component], (1, 2, 7, most))
        certificate["components"][component]["parity"] = parity.to_json(found[component])
    images = final_images(
        recorded.prototypes, candidate, job.schedule, resolution=job.resolution, batch=IMAGES, guidance=GUIDANCE
    )
    decibels = parity.psnr(recorded.images, images)
    certificate["images"] = {"count": len(images), "psnr_worst": min(decibels), "psnr_mean": float(np.mean(decibels))}
    certificate["reasons"] = parity.verdict(found, decibels, images)
    certificate["status"] = "rejected" if certificate["reasons"] else "certified"


def _speed(reference: Networks, candidate: Networks, recorded: Probe, threads: int) -> dict[str, Any]:
    """Seconds per image of both, from the UNet's and the decoder's calls of the reference preset."""
    engines = {"torch": reference, "onnx": candidate}
    generating: tuple[Component, ...] = ("unet", "vae_decoder")
    taken = dict.fromkeys(engines, 0.0)
    for component in generating:
        runtimes = {name: networks.runtime(component) for name, networks in engines.items()}
        for name, seconds in _alternate(runtimes, recorded.calls[component][0]).items():
            taken[name] += len(recorded.calls[component]) * seconds / IMAGES
    return {"seconds_per_image": taken, "ratio": taken["torch"] / taken["onnx"], "batch": IMAGES, "threads": threads}


def _alternate(runtimes: Mapping[str, Runtime], call: Tensors) -> dict[str, float]:
    """Median seconds of a call, the runtimes taking turns, each after a pause and an untimed call of its own.

    Threads of the one that has just run would otherwise still be spinning on the cores of the next.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    for _ in range(ALTERNATIONS):
        for name, runtime in runtimes.items():
            time.sleep(PAUSE)
            runtime(call)
            start = time.perf_counter()
            runtime(call)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _reject(path: Path) -> Path:
    rejected = path.with_name(path.name + REJECTED)
    shutil.rmtree(rejected, ignore_errors=True)
    os.rename(path, rejected)
    files.sync_directory(path.parent)
    return rejected


def certified(job: ExportJob) -> Artifact | None:
    """The set for this request, if it is there and may be run as it is; None if it must be exported (again)."""
    try:
        artifact = find(job.key, job.artifacts)
        if artifact is not None:
            artifact.check(job.model.sha256, CPU.type)
    except (ModelError, DamageError):
        return None
    return artifact
