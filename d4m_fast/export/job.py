"""What `d4m-fast export` was asked for, checked before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from d4m_fast.config.export import ExportConfig
from d4m_fast.engine.artifacts import ELEMENTS, Artifact, Key, find
from d4m_fast.engine.engines import ENGINES, EngineSpec
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.ort import require_ort
from d4m_fast.engine.runtime import compute_capability, device_name, resolve_device
from d4m_fast.engine.schedule import Schedule, open_schedule
from d4m_fast.engine.signature import SIGNATURES, Component
from d4m_fast.engine.trt_api import Api, load_trt
from d4m_fast.errors import DamageError, ModelError, PreflightError
from d4m_fast.export.to_onnx import require_onnx
from d4m_fast.export.to_trt import Range, capabilities, ranges
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.records import Source
from d4m_fast.storage import files

STEPS, STRENGTH = 50, 0.7  # the reference preset's


@dataclass(frozen=True)
class ExportJob:
    """A checked request.

    Attributes:
        device: where what is exported is compared with PyTorch, which runs there too.
        api: the library that builds engines, if engines are asked for.
    """

    config: ExportConfig
    model: Model
    source: Source
    schedule: Schedule
    key: Key
    artifacts: Path
    device: torch.device
    api: Api | None

    @property
    def resolution(self) -> int:
        return self.key.resolution

    @property
    def engine(self) -> EngineSpec:
        return ENGINES[self.config.engine]

    @property
    def path(self) -> Path:
        return self.key.path(self.artifacts)

    @property
    def runnable(self) -> bool:
        """Whether what is exported can run here: engines built ahead of time, and fp16 on a CPU, cannot."""
        return self.device.type != "cpu" or (not self.engine.built_per_gpu and self.key.precision == "fp32")

    def rows(self, component: Component) -> int | None:
        """Rows the exported file is fixed to; guidance doubles the UNet's."""
        static = self.config.static_batch
        return None if static is None else static * SIGNATURES[component].halves

    def profiles(self, component: Component, elements_per_row: int) -> tuple[Range, ...]:
        """Of an engine; no activation reaches 2^31 elements, so that the decoder's may end before the UNet's."""
        most = self.config.max_batch * SIGNATURES[component].halves
        return ranges(max(1, min(most, ELEMENTS // elements_per_row)), self.rows(component))

    def require_countable(self, component: Component, elements_per_row: int) -> None:
        """Refuse a fixed batch whose activations reach 2^31 elements; a free one is cut.

        Raises:
            ModelError: this one's do.
        """
        rows = self.rows(component)
        if rows is not None and rows * elements_per_row > ELEMENTS:
            most = ELEMENTS // elements_per_row // SIGNATURES[component].halves
            raise ModelError(
                f"--static-batch: {component} takes {most} images at most, for 2^31 elements of an activation"
            )

    def score_sides(self) -> list[int]:
        """Queries of the UNet's attention levels, where no other axis of Stable Diffusion is as long."""
        _, h, w = self.model.latent_shape(self.resolution)
        levels = int(math.log2(max(h, w)))
        return [side for level in range(levels) if (side := (h >> level) * (w >> level)) > 2560]


def prepare_export(config: ExportConfig, artifacts: Path) -> ExportJob:
    """Open what the config names.

    Raises:
        D4MError: the first thing that is wrong, before anything is written.
    """
    require_onnx()
    device = resolve_device(config.device)
    require_ort(torch.device("cpu") if config.engine == "tensorrt" else device)
    api = _api(config, device) if config.engine == "tensorrt" else None
    model = open_model(config.model, config.revision)
    resolution = model.resolution if config.resolution is None else config.resolution
    model.latent_shape(resolution)
    schedule = open_schedule(model.path, STEPS, STRENGTH)
    if (hindrance := hindrance_of_export(model, schedule)) is not None:
        raise ModelError(f"{hindrance}; use --engine torch")
    targets = _targets(config, device) if ENGINES[config.engine].built_per_gpu else ()
    key = Key(model.sha256, config.engine, config.precision, resolution, config.static_batch, targets)
    compared_on = _compared_on(config, device)
    source = open_source(config.data, prompts_needed=False, own=[artifacts])
    job = ExportJob(
        config,
        model,
        source,
        schedule,
        key,
        artifacts,
        compared_on,
        api,
    )
    weights = sum(file.stat().st_size for part in model.weights for file in part.files)
    # fp32, from weights that may be stored in half precision
    files.require_room(files.Need(job.path, max(0, 2 * weights - files.bytes_on_disk(job.path)), "exports"))
    return job


def hindrance_of_export(model: Model, schedule: Schedule) -> str | None:
    """Return why a model cannot be exported: its networks take more than exported ones; None if it can."""
    if model.export_hindrance is not None:
        return f"{model.export_hindrance}, which exported networks do not take"
    if not schedule.whole_timesteps:
        return f"{model.path / 'scheduler'}: timesteps between two noise levels, which exported networks do not take"
    return None


def _api(config: ExportConfig, device: torch.device) -> Api:
    if config.targets:
        api = load_trt("tensorrt-rtx")
        capabilities(api, config.targets)
        return api
    if device.type == "cpu":
        raise PreflightError(
            "--engine tensorrt: there is no GPU here; name the one it is for (--target sm89), and TensorRT for RTX"
            " builds for it ahead of time"
        )
    return load_trt("tensorrt")


def _compared_on(config: ExportConfig, device: torch.device) -> torch.device:
    """The device here, unless engines are for others only."""
    here = not config.targets or (device.type != "cpu" and compute_capability(device) in config.targets)
    return device if here else torch.device("cpu")


def _targets(config: ExportConfig, device: torch.device) -> tuple[str, ...]:
    return config.targets if config.targets else (compute_capability(device),)


def exported(job: ExportJob) -> Artifact | None:
    """The set for this request, if it is there whole; None if it must be exported (again)."""
    try:
        artifact = find(job.key, job.artifacts)
        if artifact is not None:
            if _of_other_options(artifact, job.config):
                return None
            artifact.check_files(job.model.sha256)
            artifact.check_status(device_name(job.device), unverified=not job.runnable)
    except (ModelError, DamageError):
        return None
    return artifact


def _of_other_options(artifact: Artifact, config: ExportConfig) -> bool:
    """Whether it was made otherwise, or compared on fewer images; the key has the rest."""
    made = artifact.certificate["options"]
    others = any(made[name] != getattr(config, name) for name in ("data", "max_batch", "level"))
    return others or made["images"] < config.images
