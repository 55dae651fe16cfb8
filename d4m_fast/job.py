"""Everything a run needs to know before it starts, and every reason not to start."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from d4m_fast import __version__
from d4m_fast.config.choices import FloatType
from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.generation import UNPROVEN
from d4m_fast.engine.artifacts import Artifact, exports_of
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.modules import import_libraries
from d4m_fast.engine.networks import Networks, open_exported, open_networks
from d4m_fast.engine.prompts import require_known_prompts, require_whole_prompts
from d4m_fast.engine.runtime import hardware, resolve_device, resolve_precision
from d4m_fast.engine.schedule import WHOLE_SCHEDULE, Schedule, open_schedule
from d4m_fast.engine.trial import trial_resolution, try_networks
from d4m_fast.engine_choice import engine_for
from d4m_fast.errors import DataError, PreflightError, UsageError, require
from d4m_fast.fingerprints import fingerprint
from d4m_fast.kernels.cuda import require_cupy
from d4m_fast.runs.identity import essence, options_of
from d4m_fast.runs.image_files import most_bytes, require_format
from d4m_fast.runs.latents import folder_name
from d4m_fast.runs.output_files import OUTPUTS
from d4m_fast.runs.plan import ENCODE_BATCH, Group
from d4m_fast.sources.dataset import BUNDLED, open_source, subset
from d4m_fast.sources.decode import RULES
from d4m_fast.sources.entries import CACHES, INDEXES
from d4m_fast.sources.records import ClassInfo, Source, by_class
from d4m_fast.storage import files

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")


@dataclass(frozen=True)
class Job:
    """A checked request.

    Attributes:
        config: with every "auto" and every default that depends on the model resolved.
        threads: of a run that starts now; one that goes on has its own in its plan.
        artifacts: where latents and exported networks are kept.
    """

    config: DistillConfig
    source: Source
    model: Model
    device: torch.device
    dtype: torch.dtype
    resolution: int
    image_size: int
    schedule: Schedule
    threads: int
    artifacts: Path
    artifact: Artifact | None = None
    engine_reason: str = ""

    def open_networks(self) -> Networks:
        """Open all networks on the chosen engine, and try each once.

        Raises:
            ModelError: one cannot be loaded, does not run, or does not fit the others.
            UsageError: the text encoder would cut a prompt, or take two for one.
        """
        if self.artifact is None:
            compiled, reference = self.config.compile, self.schedule.sensitive
            networks = open_networks(self.model.path, self.device, self.dtype, compiled=compiled, reference=reference)
            try_networks(self.model, networks, trial_resolution(self.model), compiled=self.config.compile)
        else:
            networks = open_exported(self.model, self.resolution, self.artifact, self.device)
            try_networks(self.model, networks, self.resolution)
        guided = networks.unet.doubles(self.config.guidance)
        negative_prompt = self.config.negative_prompt if guided else None
        require_whole_prompts(networks.text_encoder, self.source.classes, negative_prompt)
        return networks

    def import_libraries(self) -> None:
        """Import what `open_networks` and the schedule need, so that this time is not booked on the first stages."""
        import_libraries(networks=self.artifact is None)

    @property
    def preset_line(self) -> str:
        """Line of the log about the preset."""
        calls, guided = len(self.schedule.steps), self.schedule.guided_calls(self.config.guidance)
        guided = 0 if self.model.embeds_guidance else guided
        proof = f"; {UNPROVEN}" if self.config.unproven else ""
        stepper = self.schedule.stepper
        stepped = f"; {stepper.name} is stepped itself, slower than a table ({stepper.reason})" if stepper else ""
        return f"{self.config.preset}, {calls} UNet calls per image, {guided} of them guided{proof}{stepped}"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the bytes of a run depend on: two runs with equal identities on one machine have equal bytes."""
        libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
        return {
            "options": asdict(self.config),
            "source_sha256": self.source.fingerprint,
            "decoded_by": RULES,
            "model_sha256": self.model.sha256,
            "prompts_sha256": fingerprint([class_info.prompt for class_info in self.source.classes]),
            "versions": {"d4m-fast": __version__, **libraries},
            "machine": hardware(self.device),
            "artifacts": str(self.artifacts.absolute()),
            **self._engine,
        }

    @property
    def _engine(self) -> dict[str, Any]:
        """Exported networks, as they stand in the identity of a run and of latents; empty for PyTorch's."""
        if self.artifact is None:
            return {}
        return {"artifact_sha256": self.artifact.sha256, "run_with": dict(self.artifact.certificate["versions"])}

    def latents_made_by(self, batch: int, threads: int) -> dict[str, Any]:
        """Return everything the latents depend on; neither IPC, nor guidance, nor the run's seed."""
        return {
            "source": self.source.fingerprint,
            "decoded_by": RULES,
            "model": self.model.sha256,
            "resolution": self.resolution,
            "latent": self.config.latent,
            "precision": self.config.precision,
            "device": hardware(self.device),
            "threads": threads,
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "pillow")},
            # Only where it is on: latents encoded before the option was there are still found.
            **({"compile": True} if self.config.compile else {}),
            **self._engine,
            "batch": batch,
        }

    def latents_path(self, artifacts: Path, batch: int, threads: int) -> Path:
        return artifacts / "latents" / folder_name(self.latents_made_by(batch, threads))

    def encoded_with(self, artifacts: Path) -> int | None:
        """Return the images per batch of such latents as are there, whole ones first; None if there are none."""
        name = self.latents_path(artifacts, 0, self.threads).name.removesuffix("0")
        folders = (artifacts / "latents").glob(f"{name}[0-9]*")
        ours = (path for path in folders if path.name.removeprefix(name).isdecimal())
        # The index is written last, so that latents with one are whole.
        ranked = sorted(ours, key=lambda path: (not (path / "index.json").is_file(), path.name))
        return int(ranked[0].name.removeprefix(name)) if ranked else None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape(self.resolution)

    def classes_of(self, groups: Sequence[Group]) -> list[ClassInfo]:
        """Return the classes of these groups, in their order."""
        by_id = {class_info.id: class_info for class_info in self.source.classes}
        class_ids = chain.from_iterable(group.classes for group in groups)
        return [by_id[class_id] for class_id in class_ids]

    def default_run(self) -> Path:
        # 48 bits of a hash: a name that can be typed, and no two runs of one user meet.
        return Path("runs") / fingerprint(essence(self.identity))[:12]


def prepare(config: DistillConfig, *, artifacts: Path, run: Path | None = None) -> Job:
    """Open what the config names and resolve what it leaves open.

    Args:
        artifacts: where exported networks are kept.
        run: the run directory, if it is named; a run that was begun keeps its engine.

    Raises:
        D4MError: the first thing that is wrong, before anything is written.
    """
    device = resolve_device(config.device)
    dtype = resolve_precision(config.precision, device)
    saved_options = {} if run is None else options_of(run)
    model = open_model(config.model, _revision(config, saved_options))
    # A run's images and the cache are no classes of the next run, wherever they are.
    excluded = [artifacts, *map(artifacts.joinpath, CACHES), *([] if run is None else [run])]
    source = open_source(config.data, prompts=config.prompts, own=excluded, indexes=artifacts / INDEXES)
    source = source if config.classes is None else subset(source, config.classes)
    if not config.allow_unknown_prompts:
        require_known_prompts(model, source.classes)
    if config.small_classes == "refuse":
        _require_images(source, config.ipc)
    require_format(config.format)
    if config.kmeans_on == "gpu":
        _require_gpu_kmeans(config, device)
    resolution = model.resolution if config.resolution is None else config.resolution
    image_size = resolution if config.image_size is None else config.image_size
    model.latent_shape(resolution)  # refuses a resolution that the networks cannot halve as often as they do
    require(config.steps <= model.train_timesteps, f"--steps can be at most {model.train_timesteps} with this model")
    schedule = open_schedule(
        model.path, config.steps, config.strength, scheduler=config.scheduler, interval=config.interval
    )
    _require_guidance(config, model)
    precision: FloatType = "fp32" if dtype == torch.float32 else "fp16"
    exports = partial(exports_of, model.sha256, precision, resolution, artifacts)
    artifact, reason = engine_for(config, exports, model, device, schedule, saved_options.get("engine"))
    resolved = dataclasses.replace(
        config,
        data=_absolute(config.data),
        prompts=config.prompts if config.prompts in (None, "official") else _absolute(config.prompts),
        model=model.name,
        revision=model.revision,
        engine="torch" if artifact is None else artifact.engine,
        device=str(device),
        precision=precision,
        resolution=resolution,
        image_size=image_size,
    )
    threads = torch.get_num_threads() if config.threads is None else config.threads
    return Job(
        resolved, source, model, device, dtype, resolution, image_size, schedule, threads, artifacts, artifact, reason
    )


def _revision(config: DistillConfig, saved_options: Mapping[str, Any]) -> str | None:
    """Return the revision asked for; else, in a run that is there on the same model, the commit that it has."""
    goes_on = config.revision is None and saved_options.get("model") == config.model
    return saved_options.get("revision") if goes_on else config.revision


def _require_guidance(config: DistillConfig, model: Model) -> None:
    if model.embeds_guidance and config.interval != WHOLE_SCHEDULE:
        raise UsageError(
            "--guidance-interval: this model's UNet is told the guidance scale (time_cond_proj_dim in"
            " unet/config.json) and has no step without; leave it out"
        )


def _absolute(name: str) -> str:
    """Return an absolute path, so that a run can be evaluated, or gone on with, from anywhere."""
    return name if name == BUNDLED else str(Path(name).resolve())


def _require_gpu_kmeans(config: DistillConfig, device: torch.device) -> None:
    require(config.kmeans != "minibatch", "--kmeans minibatch runs on the CPU only; leave --kmeans-on at cpu")
    if device.type == "cpu":
        raise PreflightError("--kmeans-on gpu: the networks run on the CPU; give --device, or leave it at cpu")
    require_cupy()


def _require_images(source: Source, ipc: int) -> None:
    counts = {class_id: len(items) for class_id, items in by_class(source.items).items()}
    for class_info in source.classes:
        count = counts.get(class_info.id, 0)
        if count < ipc:
            raise DataError(
                f"class {class_info.folder}: {count} images, fewer than --ipc {ipc}; lower it, add images, or give"
                " --small-classes fewer or repeat"
            )


def require_disk(job: Job, run: Path, artifacts: Path) -> None:
    """Refuse a run that cannot fit, from the sizes of what it still has to write, if nothing can be compressed.

    Raises:
        PreflightError: a file system has too little room.
    """
    channels, height, width = job.latent_shape
    encoded_with = job.encoded_with(artifacts)
    path = job.latents_path(artifacts, ENCODE_BATCH if encoded_with is None else encoded_with, job.threads)
    latents = 2 * len(job.source.items) * channels * height * width  # fp16
    latent_bytes = 0 if (path / "index.json").is_file() else max(0, latents - files.bytes_on_disk(path))
    written_images = sum(1 for _ in (run / "images").glob("*/*")) if os.path.isdir(run / "images") else 0
    missing_images = max(0, len(job.source.classes) * job.config.ipc - written_images)
    image_bytes = missing_images * (most_bytes(job.image_size) + 4 * channels * height * width)
    output = run / OUTPUTS / job.config.output
    output_bytes = 0
    if job.config.output != DistillConfig.output:
        all_images = len(job.source.classes) * job.config.ipc * most_bytes(job.image_size)
        output_bytes = max(0, all_images - files.bytes_on_disk(output))
    files.require_room(
        files.Need(path, latent_bytes, "latents"),
        files.Need(run / "images", image_bytes, "images"),
        files.Need(output, output_bytes, f"their {job.config.output} form"),
    )


def default_artifacts() -> Path:
    """Return the user's cache directory, by the XDG convention: an empty variable is none, a relative one is invalid.

    Raises:
        PreflightError: the user has none.
    """
    cache, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    if cache and not os.path.isabs(cache):
        raise PreflightError(f"XDG_CACHE_HOME={cache}: not an absolute path; set one, or give --artifacts")
    if not cache and (not os.environ.get("HOME", "unset") or not os.path.isabs(home)):
        raise PreflightError("HOME: names no home directory; set it or XDG_CACHE_HOME, or give --artifacts")
    return (Path(cache) if cache else Path(home) / ".cache") / "d4m-fast"
