"""What `d4m-fast certify` was asked for, checked before anything is run."""

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
from d4m_fast.engine.artifacts import versions
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.runtime import device_name, processor_name, resolve_device
from d4m_fast.engine.schedule import Schedule, open_schedule
from d4m_fast.export.job import STEPS, STRENGTH
from d4m_fast.fingerprints import fingerprint
from d4m_fast.measure.flops import Shapes, trace_model
from d4m_fast.measure.monitor import driver_version, require_nvml
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.records import Source

LIBRARIES = (
    *("torch", "diffusers", "transformers", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt-cu13", "cupy-cuda13x"),
)
MOST_IMAGES, LEAST_IMAGES = 32, 2
REFERENCE_FLOP = 2e14
"""Of the images that the CPU makes as the reference: minutes, not hours."""


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        artifacts: where exported networks are kept.
        folder: of the steps' records and of the certificate.
        images: to compare engines on.
    """

    config: CertifyConfig
    model: Model
    source: Source
    schedule: Schedule
    shapes: Shapes
    device: torch.device
    artifacts: Path
    folder: Path
    resolution: int
    images: int

    @property
    def machine(self) -> dict[str, Any]:
        """What figures are true of."""
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
        """What a step's result depends on, beside what is its own."""
        found = versions(*LIBRARIES)
        return {
            "machine": self.machine,
            "versions": {"d4m-fast": __version__, **{n: v for n, v in found.items() if v != "not installed"}},
            "model_sha256": self.model.sha256,
            "source_sha256": self.source.fingerprint,
            "resolution": self.resolution,
            "images": self.images,
        }

    def key(self, *parts: object) -> str:
        return fingerprint([self.identity, *parts])

    def export_config(self, engine: ExportedEngine, precision: FloatType) -> ExportConfig:
        config = self.config
        return ExportConfig(
            model=config.model,
            revision=self.model.revision,
            data=config.data,
            engine=engine,
            precision=precision,
            resolution=self.resolution,
            images=self.images,
            device=str(self.device),
            threads=config.threads,
        )


def prepare_certification(config: CertifyConfig, artifacts: Path, folder: Path) -> Request:
    """Open what the config names.

    Raises:
        D4MError: the first thing that is wrong, before anything is written.
    """
    device = resolve_device(config.device)
    if device.type != "cpu":
        require_nvml()
    model = open_model(config.model, config.revision)
    resolution = model.resolution if config.resolution is None else config.resolution
    model.latent_shape(resolution)
    schedule = open_schedule(model.path, STEPS, STRENGTH)
    shapes = trace_model(str(model.path), resolution)
    images = affordable(shapes, len(schedule.steps)) if config.images is None else config.images
    source = open_source(config.data, prompts_needed=False, own=[artifacts])
    return Request(config, model, source, schedule, shapes, device, artifacts, folder, resolution, images)


def affordable(shapes: Shapes, calls: int) -> int:
    """Images the CPU can make as a reference: 32 of a small model, three of Stable Diffusion 1.5."""
    each = 2 * calls * shapes.parts["unet"].flops + shapes.parts["vae_decoder"].flops
    return max(LEAST_IMAGES, min(MOST_IMAGES, int(REFERENCE_FLOP / each)))
