"""The request of `d4m-fast certify`, checked before anything is run."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from d4m_fast import __version__
from d4m_fast.config.certify import CertifyConfig
from d4m_fast.config.choices import ExportedEngine, FloatType
from d4m_fast.config.export import ExportConfig
from d4m_fast.engine.artifacts import installed_versions
from d4m_fast.engine.model import Model
from d4m_fast.engine.runtime import device_name, processor_name, resolve_device
from d4m_fast.export.workload import Workload, open_workload
from d4m_fast.fingerprints import fingerprint
from d4m_fast.measure.flops import Shapes, trace_model
from d4m_fast.measure.monitor import driver_version, require_nvml

# Packages that a step's result depends on: another version, and the step is run again.
LIBRARIES = (
    *("torch", "diffusers", "transformers", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt-cu13", "cupy-cuda13x"),
)
MOST_IMAGES, LEAST_IMAGES = 32, 2  # two rows at least, or a mixed-up batch would not show
REFERENCE_FLOP = 2e14
"""FLOP of all images that the CPU makes as the reference: minutes, not hours."""


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        workload: what engines are compared on.
        artifacts: where exported networks are kept.
        folder: of the steps' records and of the certificate.
        images: how many engines are compared on.
    """

    config: CertifyConfig
    workload: Workload
    shapes: Shapes
    device: torch.device
    artifacts: Path
    folder: Path
    images: int

    @property
    def model(self) -> Model:
        return self.workload.model

    @property
    def machine(self) -> dict[str, Any]:
        """Machine that the figures are true of."""
        return {
            "device": device_name(self.device),
            "driver": driver_version(self.device),
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": self.config.threads,
            "platform": platform.system(),
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the result of every step depends on."""
        return {
            "machine": self.machine,
            "versions": {"d4m-fast": __version__, **installed_versions(*LIBRARIES)},
            "model_sha256": self.model.sha256,
            "source_sha256": self.workload.source.fingerprint,
            "resolution": self.workload.resolution,
            "images": self.images,
        }

    def key(self, *dependencies: object) -> str:
        return fingerprint([self.identity, *dependencies])

    def export_config(self, engine: ExportedEngine, precision: FloatType) -> ExportConfig:
        config = self.config
        return ExportConfig(
            model=config.model,
            revision=self.model.revision,
            data=config.data,
            engine=engine,
            precision=precision,
            resolution=self.workload.resolution,
            images=self.images,
            device=str(self.device),
            threads=config.threads,
        )


def prepare_certification(config: CertifyConfig, artifacts: Path, folder: Path) -> Request:
    """Open everything that the config names.

    Raises:
        D4MError: the first thing that is wrong, before anything is written.
    """
    device = resolve_device(config.device)
    if device.type != "cpu":
        require_nvml()  # found missing now, not after the reference has been computed
    workload = open_workload(config, artifacts)
    shapes = trace_model(str(workload.model.path), workload.resolution)
    calls = len(workload.schedule.steps)
    images = affordable_images(shapes, calls) if config.images is None else config.images
    return Request(config, workload, shapes, device, artifacts, folder, images)


def affordable_images(shapes: Shapes, calls: int) -> int:
    """Return how many images the CPU can make as a reference: 32 of a small model, three of Stable Diffusion 1.5."""
    flop_per_image = 2 * calls * shapes.parts["unet"].flops + shapes.parts["vae_decoder"].flops
    return max(LEAST_IMAGES, min(MOST_IMAGES, int(REFERENCE_FLOP / flop_per_image)))
