"""The request of `d4m-fast export`, checked before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from d4m_fast.config.export import ExportConfig
from d4m_fast.engine.artifacts import ELEMENTS, Artifact, Key, find
from d4m_fast.engine.engines import ENGINES, EngineSpec
from d4m_fast.engine.model import Model
from d4m_fast.engine.ort import require_ort
from d4m_fast.engine.runtime import compute_capability, device_name, resolve_device
from d4m_fast.engine.signature import SIGNATURES, Component
from d4m_fast.engine.trt_api import Api, load_trt
from d4m_fast.errors import DamageError, ModelError, PreflightError
from d4m_fast.export.to_onnx import require_onnx
from d4m_fast.export.to_trt import Range, capabilities, ranges
from d4m_fast.export.workload import Workload, open_workload
from d4m_fast.storage import files

# No axis of Stable Diffusion's tensors but that of the queries is longer.
LONGEST_OTHER_AXIS = 2560


@dataclass(frozen=True)
class ExportJob:
    """A checked request.

    Attributes:
        workload: the model, and what its networks are compared on.
        artifacts: where exported networks are kept.
        device: where what is exported is compared with PyTorch, which runs there too.
        api: the library that builds engines, if engines are asked for.
    """

    config: ExportConfig
    workload: Workload
    key: Key
    artifacts: Path
    device: torch.device
    api: Api | None

    @property
    def model(self) -> Model:
        return self.workload.model

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

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of the networks' axes."""
        return self.model.sizes(self.workload.resolution)

    def rows(self, component: Component) -> int | None:
        """Return the rows the exported file is fixed to, None where they are free; guidance doubles the UNet's."""
        static = self.config.static_batch
        return None if static is None else static * SIGNATURES[component].halves

    def profiles(self, component: Component, elements_per_row: int) -> tuple[Range, ...]:
        """Return the optimisation profiles of an engine.

        No activation reaches 2^31 elements, so that the decoder's profiles may end before the UNet's.
        """
        largest = self.config.max_batch * SIGNATURES[component].halves
        return ranges(max(1, min(largest, ELEMENTS // elements_per_row)), self.rows(component))

    def require_countable(self, component: Component, elements_per_row: int) -> None:
        """Refuse a fixed batch whose activations reach 2^31 elements; a free one is cut.

        Raises:
            ModelError: this one's do.
        """
        rows = self.rows(component)
        if rows is not None and rows * elements_per_row > ELEMENTS:
            largest = ELEMENTS // elements_per_row // SIGNATURES[component].halves
            raise ModelError(
                f"--static-batch: {component} takes {largest} images at most, for 2^31 elements of an activation"
            )

    def score_sides(self) -> list[int]:
        """Return the queries of the UNet's attention levels, where no other axis of Stable Diffusion is as long."""
        _, h, w = self.model.latent_shape(self.workload.resolution)
        levels = int(math.log2(max(h, w)))  # more than a UNet has
        sides = []
        for level in range(levels):
            queries = (h >> level) * (w >> level)
            if queries > LONGEST_OTHER_AXIS:
                sides.append(queries)
        return sides


def prepare_export(config: ExportConfig, artifacts: Path) -> ExportJob:
    """Open everything that the config names.

    Raises:
        D4MError: the first thing that is wrong, before anything is written.
    """
    # The packages first: a missing one is found before models and data are read.
    require_onnx()
    device = resolve_device(config.device)
    require_ort(torch.device("cpu") if config.engine == "tensorrt" else device)
    api = _load_builder(config, device) if config.engine == "tensorrt" else None
    workload = open_workload(config, artifacts)
    model = workload.model
    if (hindrance := hindrance_of_export(workload)) is not None:
        raise ModelError(f"{hindrance}; use --engine torch")
    targets: tuple[str, ...] = ()
    if ENGINES[config.engine].built_per_gpu:
        targets = config.targets if config.targets else (compute_capability(device),)
    key = Key(model.sha256, config.engine, config.precision, workload.resolution, config.static_batch, targets)
    # Engines that are for other GPUs only are compared on the CPU.
    is_target = device.type != "cpu" and compute_capability(device) in config.targets
    comparison_device = device if not config.targets or is_target else torch.device("cpu")
    job = ExportJob(config, workload, key, artifacts, comparison_device, api)
    weights = 0
    for network in model.weights:
        weights += sum(file.stat().st_size for file in network.files)
    # Twice: fp32, from weights that may be stored in half precision.
    files.require_room(files.Need(job.path, max(0, 2 * weights - files.bytes_on_disk(job.path)), "exports"))
    return job


def hindrance_of_export(workload: Workload) -> str | None:
    """Return why a model cannot be exported: its networks take more than exported ones; None if it can."""
    model = workload.model
    if model.export_hindrance is not None:
        return f"{model.export_hindrance}, which exported networks do not take"
    if not workload.schedule.whole_timesteps:
        return f"{model.path / 'scheduler'}: timesteps between two noise levels, which exported networks do not take"
    return None


def _load_builder(config: ExportConfig, device: torch.device) -> Api:
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


def exported(job: ExportJob) -> Artifact | None:
    """Return the set for this request, if it is there whole; None if it must be exported (again)."""
    try:
        artifact = find(job.key, job.artifacts)
        if artifact is None or _has_other_options(artifact, job.config):
            return None
        artifact.check_files(job.model.sha256)
        artifact.check_status(device_name(job.device), unverified=not job.runnable)
    except (ModelError, DamageError):
        return None
    return artifact


def _has_other_options(artifact: Artifact, config: ExportConfig) -> bool:
    """Whether it was exported otherwise, or compared on fewer images; the key has the other options."""
    options = artifact.certificate["options"]
    differs = any(options[name] != getattr(config, name) for name in ("data", "max_batch", "level"))
    return differs or bool(options["images"] < config.images)
