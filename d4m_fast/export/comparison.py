"""Comparison of an exported set with fp32 PyTorch: network by network, image by image, and how fast."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from d4m_fast.engine.runtime import Runtime
from d4m_fast.engine.signature import COMPONENTS, SIGNATURES, Component
from d4m_fast.errors import NonFiniteError
from d4m_fast.export.job import ExportJob
from d4m_fast.export.limits import LIMITS, Limits, activation_verdict, half_verdict, verdict
from d4m_fast.export.probe import Probe, final_images
from d4m_fast.export.rounded_fp16 import write_rounded
from d4m_fast.export.workload import GUIDANCE
from d4m_fast.measure import parity
from d4m_fast.measure.clock import alternate
from d4m_fast.runs.plan import ENCODE_BATCH, GENERATE_BATCH

HALF_IMAGES = 2  # of a call, that PyTorch's own half precision is measured on: it is slow on a CPU
ALTERNATIONS = 5  # turns of PyTorch and of the export
PAUSE = 0.1  # seconds before each turn, see `alternate`
Candidate = tuple[Networks, str]  # and what they are, for the certificate


@dataclass(frozen=True)
class Comparison:
    """Differences of a candidate from fp32 PyTorch, and the verdict on them.

    Attributes:
        parities: by network, of each call.
        half: errors beside PyTorch's own half precision; None where the set is in fp32.
        reasons: why the set must be rejected; none if it need not be.
    """

    parities: Mapping[Component, Sequence[parity.Parity]]
    decibels: Sequence[float]
    limits: Limits
    half: Mapping[Component, parity.HalfErrors] | None
    reasons: Sequence[str]


@contextmanager
def open_candidate(job: ExportJob, artifact: Artifact) -> Iterator[Candidate]:
    """Open the networks to compare; yields them, and what they are, in words.

    Where the set itself cannot run, its ONNX files stand in: as they are, or rounded where fp16 would round.
    """
    if job.runnable:
        networks = open_exported(job.model, job.workload.resolution, artifact, job.device)
        yield networks, f"{ENGINES[artifact.engine].label} on {job.device.type}"
    elif job.key.precision == "fp32":
        networks = _open_onnx(job, artifact, artifact.onnx)
        yield networks, "the ONNX files, ONNX Runtime on cpu"
    else:
        with tempfile.TemporaryDirectory(dir=job.path, prefix=".rounded-") as folder:
            for file in artifact.path.glob("*.onnx"):  # the UNet's context among them
                write_rounded(file, Path(folder) / file.name)
            networks = _open_onnx(job, artifact, lambda component: Path(folder) / artifact.onnx(component).name)
            yield networks, "the ONNX files with every fp16 value rounded, ONNX Runtime on cpu"


def _open_onnx(job: ExportJob, artifact: Artifact, file_of: Callable[[Component], Path]) -> Networks:
    sizes, threads = job.sizes, job.config.threads

    def open_runtime(component: Component) -> Runtime:
        rows = artifact.static_rows(component)
        return open_ort(file_of(component), component, sizes, job.device, threads=threads, static_batch=rows)

    return Networks(job.model.path, open_runtime)


def compare_with_reference(
    job: ExportJob, reference: Networks, candidate: Networks, probe: Probe, activations: Mapping[Component, float]
) -> Comparison:
    """Compare network by network and image by image.

    Args:
        activations: largest calibrated fp16 value of each network; empty where the set is in fp32.
    """
    parities: dict[Component, list[parity.Parity]] = {}
    for component in COMPONENTS:
        largest_batch = ENCODE_BATCH if component == "vae_encoder" else GENERATE_BATCH
        runtimes = reference.runtime(component), candidate.runtime(component)
        # Sizes that the trace did not have show a batch that was frozen, or rows that are mixed up.
        batches = (1, 2, 7, largest_batch)
        parities[component] = parity.compare(component, *runtimes, probe.calls[component], batches, GUIDANCE)
    try:
        images = final_images(job.workload, probe.prototypes, candidate, batch=job.config.images)
        decibels = parity.psnr(probe.images, images)
    except NonFiniteError:  # the networks' own comparison says which
        images, decibels = probe.images, [0.0] * len(probe.images)
    limits = LIMITS[job.key.precision]
    reasons = verdict(parities, decibels, images, limits)
    if job.key.precision == "fp32":
        return Comparison(parities, decibels, limits, None, reasons)
    half = _half_errors(job, reference, candidate, probe)
    reasons += half_verdict(half) + activation_verdict(activations)
    return Comparison(parities, decibels, limits, half, reasons)


def _half_errors(
    job: ExportJob, reference: Networks, candidate: Networks, probe: Probe
) -> dict[Component, parity.HalfErrors]:
    """Compare with PyTorch's own half precision, on the first rows of every recorded call."""
    errors: dict[Component, parity.HalfErrors] = {}
    for component in COMPONENTS:
        exact, ours = reference.runtime(component), candidate.runtime(component)
        pytorch = open_eager(job.model.path, component, job.device, torch.float16)  # one in memory at a time
        calls = [parity.first_images(component, call, HALF_IMAGES) for call in probe.calls[component]]
        our_parities = parity.compare(component, exact, ours, calls, (), GUIDANCE)
        pytorch_parities = parity.compare(component, exact, pytorch, calls, (), GUIDANCE)
        rows = max(map(SIGNATURES[component].rows, calls))
        errors[component] = parity.half_errors(our_parities, pytorch_parities, rows)
    return errors


def record_comparison(certificate: dict[str, Any], comparison: Comparison) -> None:
    """Write a comparison into a certificate."""
    for component, calls in comparison.parities.items():
        certificate["components"][component]["parity"] = parity.to_json(calls)
    decibels = comparison.decibels
    certificate["images"] = {
        "count": len(decibels),
        "psnr_worst": min(decibels),
        "psnr_mean": float(np.mean(decibels)),
    }
    certificate["limits"] = asdict(comparison.limits)
    certificate["reasons"] = list(comparison.reasons)
    if comparison.half is not None:
        certificate["half"] = {component: asdict(errors) for component, errors in comparison.half.items()}


def measure_speed(
    reference: Networks, candidate: Networks, probe: Probe, device: torch.device, threads: int
) -> dict[str, Any]:
    """Time both on the reference preset's calls of the UNet and the decoder; returns seconds per image."""
    engines = {"torch": reference, "exported": candidate}
    generating: tuple[Component, ...] = ("unet", "vae_decoder")
    seconds_per_image, images = dict.fromkeys(engines, 0.0), len(probe.images)
    for component in generating:
        recorded_calls = probe.calls[component]
        calls = {}
        for name, networks in engines.items():
            calls[name] = partial(networks.runtime(component), recorded_calls[0])
        for name, seconds in alternate(calls, device, rounds=ALTERNATIONS, pause=PAUSE).items():
            seconds_per_image[name] += len(recorded_calls) * seconds / images
    ratio = seconds_per_image["torch"] / seconds_per_image["exported"]
    return {"seconds_per_image": seconds_per_image, "ratio": ratio, "batch": images, "threads": threads}
