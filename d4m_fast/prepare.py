"""Everything a run needs to know before it starts, and every reason not to start."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from d4m_fast import __version__
from d4m_fast.config import DistillConfig, as_dict, fingerprint, require
from d4m_fast.data.dataset import BUNDLED, open_source, subset
from d4m_fast.data.plan import Group, Plan, make_plan
from d4m_fast.data.records import ClassInfo, Source, by_class
from d4m_fast.data.run import essence
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.runtime import resolve_device, resolve_precision
from d4m_fast.errors import DataError, PreflightError

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")


@dataclass(frozen=True)
class Job:
    """A checked request.

    Attributes:
        config: with every "auto" and every default that depends on the model resolved.
        plan: for a run that starts now; one that goes on has its own.
    """

    config: DistillConfig
    source: Source
    model: Model
    device: torch.device
    dtype: torch.dtype
    resolution: int
    image_size: int
    plan: Plan

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this run this run: two runs with equal identities on one machine have equal bytes."""
        libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
        return {
            "options": as_dict(self.config),
            "source_sha256": self.source.fingerprint,
            "model_sha256": self.model.sha256,
            "prompts_sha256": fingerprint([info.prompt for info in self.source.classes]),
            "versions": {"d4m-fast": __version__, **libraries},
        }

    def latents_made_by(self, plan: Plan) -> dict[str, Any]:
        """What the latents depend on; neither IPC, nor guidance, nor the run's seed."""
        return {
            "source": self.source.fingerprint,
            "model": self.model.sha256,
            "resolution": self.resolution,
            "latent": self.config.latent,
            "precision": self.config.precision,
            "device": self.device.type,
            "batch": plan.encode_batch,
            "threads": plan.threads,
            "torch": importlib.metadata.version("torch"),
        }

    def latents_path(self, artifacts: Path, plan: Plan) -> Path:
        return artifacts / "latents" / fingerprint(self.latents_made_by(plan))[:16]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape(self.resolution)

    def classes_of(self, groups: Sequence[Group]) -> list[ClassInfo]:
        """The classes of these groups, in their order."""
        infos = {info.id: info for info in self.source.classes}
        return [infos[class_id] for group in groups for class_id in group.classes]

    def default_run(self) -> Path:
        return Path("runs") / fingerprint(essence(self.identity))[:12]


def prepare(config: DistillConfig) -> Job:
    """Open what the config names and resolve what it leaves open.

    Raises:
        D4MError: the first thing that is wrong, before anything is written.
    """
    device = resolve_device(config.device)
    dtype = resolve_precision(config.precision, device)
    model = open_model(config.model)
    source = open_source(config.data, prompts=config.prompts)
    source = source if config.classes is None else subset(source, config.classes)
    _require_images(source, config.ipc)
    resolution = model.resolution if config.resolution is None else config.resolution
    image_size = resolution if config.image_size is None else config.image_size
    model.latent_shape(resolution)
    require(config.steps <= model.train_timesteps, f"--steps can be at most {model.train_timesteps} with this model")
    resolved = dataclasses.replace(
        config,
        data=_absolute(config.data),
        model=_absolute(config.model),
        kmeans="direct",
        engine="torch",
        device=str(device),
        precision="fp32" if dtype == torch.float32 else "fp16",
        resolution=resolution,
        image_size=image_size,
    )
    threads = torch.get_num_threads() if config.threads is None else config.threads
    plan = make_plan([info.id for info in source.classes], config.ipc, batch_size=config.batch_size, threads=threads)
    return Job(resolved, source, model, device, dtype, resolution, image_size, plan)


def _absolute(name: str) -> str:
    """So that a run can be evaluated, or gone on with, from anywhere."""
    return name if name == BUNDLED else str(Path(name).resolve())


def _require_images(source: Source, ipc: int) -> None:
    counts = {class_id: len(items) for class_id, items in by_class(source.items).items()}
    for info in source.classes:
        count = counts.get(info.id, 0)
        if count < ipc:
            raise DataError(f"class {info.folder}: {count} images, fewer than --ipc {ipc}; lower it or add images")


def require_disk(job: Job, run: Path, artifacts: Path) -> None:
    """Refuse a run that cannot fit, from the sizes of its latents and of its images uncompressed.

    Raises:
        PreflightError: one of the two file systems has too little room.
    """
    channels, height, width = job.latent_shape
    latents = 2 * len(job.source.items) * channels * height * width
    images = len(job.source.classes) * job.config.ipc * (3 * job.image_size**2 + 4 * channels * height * width)
    places = ((job.latents_path(artifacts, job.plan), latents, "latents"), (run / "images", images, "images"))
    for path, wanted, what in places:
        free = shutil.disk_usage(_existing(path)).free + _allocated(path)
        if free < wanted:
            raise PreflightError(
                f"{path}: {what} need up to {wanted:,} bytes, {free:,} are free; free some or choose another place"
            )


def _existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.exists(p))


def _allocated(path: Path) -> int:
    """Bytes that an earlier run of the same command has taken up already."""
    return sum(512 * file.lstat().st_blocks for file in path.rglob("*")) if os.path.isdir(path) else 0


def default_artifacts() -> Path:
    """The user's cache directory, by the XDG convention."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "d4m-fast"
