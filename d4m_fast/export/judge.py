"""Is an exported set near enough to PyTorch: network by network, image by image, and how fast."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d4m_fast.engine.artifacts import Artifact
from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.engines import ENGINES
from d4m_fast.engine.networks import Networks, open_exported
from d4m_fast.engine.ort import open_ort
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.signature import COMPONENTS, SIGNATURES, Component
from d4m_fast.errors import NonFiniteError
from d4m_fast.export.job import ExportJob
from d4m_fast.export.probe import Probe, final_images
from d4m_fast.export.twin import write_twin
from d4m_fast.measure import parity
from d4m_fast.measure.clock import alternate
from d4m_fast.runs.plan import ENCODE_BATCH, GENERATE_BATCH

GUIDANCE = 8.0  # the reference preset's
HALF_IMAGES = 2  # of a call, that PyTorch's own half precision is measured on: it is slow on a CPU
ALTERNATIONS = 5
PAUSE = 0.1  # seconds
Candidate = tuple[Networks, str]


@contextmanager
def candidate(job: ExportJob, artifact: Artifact) -> Iterator[Candidate]:
    """The networks to compare, and what they are, in words.

    Where the set itself cannot run, its ONNX files stand in: as they are, or rounded where fp16 would round.
    """
    if job.runnable:
        label = ENGINES[artifact.engine].label
        yield open_exported(job.model, job.resolution, artifact, job.device), f"{label} on {job.device.type}"
    elif job.key.precision == "fp32":
        yield _by_onnx(job, artifact, {c: artifact.onnx(c) for c in COMPONENTS}), "the ONNX files, ONNX Runtime on cpu"
    else:
        with tempfile.TemporaryDirectory(dir=job.path, prefix=".twin-") as folder:
            twins = {component: Path(folder) / f"{component}.onnx" for component in COMPONENTS}
            for file in artifact.path.glob("*.onnx"):  # the UNet's context among them
                write_twin(file, Path(folder) / file.name)
            yield _by_onnx(job, artifact, twins), "the ONNX files with every fp16 value rounded, ONNX Runtime on cpu"


def _by_onnx(job: ExportJob, artifact: Artifact, paths: Mapping[Component, Path]) -> Networks:
    sizes, threads = job.model.sizes(job.resolution), job.config.threads

    def open_runtime(component: Component) -> Runtime:
        rows = artifact.static_rows(component)
        return open_ort(paths[component], component, sizes, job.device, threads=threads, static_batch=rows)

    return Networks(job.model.path, open_runtime)


def judge(
    certificate: dict[str, Any], job: ExportJob, reference: Networks, networks: Networks, recorded: Probe
) -> None:
    """Compare network by network and image by image; write what was found into the certificate."""
    found: dict[Component, list[parity.Parity]] = {}
    for component in COMPONENTS:
        most = ENCODE_BATCH if component == "vae_encoder" else GENERATE_BATCH
        runtimes = reference.runtime(component), networks.runtime(component)
        found[component] = parity.compare(component, *runtimes, recorded.calls[component], (1, 2, 7, most), GUIDANCE)
        certificate["components"][component]["parity"] = parity.to_json(found[component])
    images, decibels = _images(job, networks, recorded)
    certificate["images"] = {"count": len(images), "psnr_worst": min(decibels), "psnr_mean": float(np.mean(decibels))}
    limits = parity.LIMITS[job.key.precision]
    certificate["limits"] = parity.limits_to_json(limits)
    certificate["reasons"] = parity.verdict(found, decibels, images, limits)
    if job.key.precision == "fp16":
        errors = {c: _half_errors(job, c, reference, networks, recorded.calls[c]) for c in COMPONENTS}
        certificate["half"] = {component: asdict(of_network) for component, of_network in errors.items()}
        activations = {c: certificate["components"][c]["mixed"]["largest_fp16_activation"] for c in COMPONENTS}
        certificate["reasons"] += parity.half_verdict(errors) + parity.activation_verdict(activations)


def _images(job: ExportJob, networks: Networks, recorded: Probe) -> tuple[np.ndarray, list[float]]:
    """The final images and their PSNR in dB; 0 dB for all where a network returned NaN or infinity, which has none."""
    sizes = {"resolution": job.resolution, "batch": job.config.images}
    try:
        images = final_images(recorded.prototypes, networks, job.schedule, guidance=GUIDANCE, **sizes)
    except NonFiniteError:  # the networks' own comparison says which
        return recorded.images, [0.0] * len(recorded.images)
    return images, parity.psnr(recorded.images, images)


def _half_errors(
    job: ExportJob, component: Component, reference: Networks, networks: Networks, calls: Sequence[Tensors]
) -> parity.HalfErrors:
    """Beside PyTorch's own half precision, on the first rows of every recorded call."""
    half = open_eager(job.model.path, component, job.device, torch.float16)
    few, exact = [parity.few(component, call, HALF_IMAGES) for call in calls], reference.runtime(component)
    runtimes = networks.runtime(component), half
    ours, pytorch = (parity.compare(component, exact, runtime, few, (), GUIDANCE) for runtime in runtimes)
    return parity.half_errors(ours, pytorch, rows=max(SIGNATURES[component].rows(call) for call in few))


def speed(
    reference: Networks, networks: Networks, recorded: Probe, device: torch.device, threads: int
) -> dict[str, Any]:
    """Seconds per image of both, from the UNet's and the decoder's calls of the reference preset."""
    engines = {"torch": reference, "exported": networks}
    generating: tuple[Component, ...] = ("unet", "vae_decoder")
    taken, images = dict.fromkeys(engines, 0.0), len(recorded.images)
    for component in generating:
        runtimes = {name: engine.runtime(component) for name, engine in engines.items()}
        call = recorded.calls[component][0]
        calls = {name: partial(runtime, call) for name, runtime in runtimes.items()}
        for name, seconds in alternate(calls, device, rounds=ALTERNATIONS, pause=PAUSE).items():
            taken[name] += len(recorded.calls[component]) * seconds / images
    ratio = taken["torch"] / taken["exported"]
    return {"seconds_per_image": taken, "ratio": ratio, "batch": images, "threads": threads}
