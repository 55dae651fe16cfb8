"""What the user asked for, checked once, where it is built; the only place a default is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from d4m_fast.errors import UsageError

NEGATIVE_PROMPT = "cartoon, anime, painting"  # the official code's; the paper's main text has none

KMeansMethod = Literal["auto", "gram", "direct", "minibatch"]
PrototypeKind = Literal["mean", "medoid"]
LatentKind = Literal["sample", "mean"]
Scheduler = Literal["model", "pndm", "dpmpp", "unipc"]
PresetName = Literal["reference", "dpmpp", "unipc"]
ExportedEngine = Literal["onnx", "tensorrt"]
EngineName = Literal["torch", ExportedEngine]
Engine = Literal["auto", EngineName]
Precision = Literal["auto", "fp32", "fp16"]
FloatType = Literal["fp32", "fp16"]
ImageFormat = Literal["png", "jpeg", "webp"]

_INTERVAL = re.compile(r"([0-9]*\.?[0-9]+):([0-9]*\.?[0-9]+)")


UNPROVEN = "not yet proven on Stable Diffusion 1.5"


@dataclass(frozen=True)
class Preset:
    """Settings of generation under one name, as the fields of `DistillConfig`; `docs/presets.md` has the evidence."""

    scheduler: Scheduler = "model"
    steps: int = 50
    strength: float = 0.7
    guidance: float = 8.0
    guidance_interval: str = "0:1"


SETTINGS = tuple(field.name for field in dataclasses.fields(Preset))
PRESETS: Mapping[PresetName, Preset] = MappingProxyType(
    {
        "reference": Preset(),
        "dpmpp": Preset(scheduler="dpmpp", steps=10),
        "unipc": Preset(scheduler="unipc", steps=8),
    }
)


@dataclass(frozen=True)
class DistillConfig:
    """Options of `d4m-fast distill`; the defaults are D4M's (Su et al., 2024; official code, `gen_syn_image`).

    `of_preset` fills in another preset's settings; built directly, `preset` is but a name.

    Attributes:
        data: "bundled" or a directory.
        model: "bundled", a directory in diffusers format, or a hub id ("organisation/model").
        revision: commit, tag or branch of a model from the hub; None is what its `main` is.
        ipc: images per class.
        classes: ids, ranges or folder names, comma-separated; None is all.
        resolution: side of the encoded and generated images, in pixels; None is the model's own.
        image_size: side of the written images; None is `resolution`.
        prompts: None for the class names, "official", or a file.
        allow_unknown_prompts: also those that a model which lists the prompts it knows does not list.
        strength: how far up the noise schedule a prototype is sent, in (0, 1].
        guidance: classifier-free guidance scale; at most 1 runs the UNet once per step instead of twice.
        steps: length of the whole schedule; about `steps * strength` of it are run.
        kmeans_on: "gpu" clusters where the networks run, by kernels that we have run on CPUs only.
        scheduler: "model" is the model directory's own.
        guidance_interval: "LOW:HIGH", parts of the noise schedule; steps outside run without guidance.
        format: of the written images; png is lossless.
        batch_size, threads: "auto" and None let the plan decide; they are part of what fixes the bytes.
        compile: UNet and VAE through torch.compile; for the torch engine.
        max_bad_fraction: images left out (damaged, or that no decoder reads) that are tolerated, as a part of all.
    """

    data: str = "bundled"
    model: str = "bundled"
    revision: str | None = None
    ipc: int = 10
    classes: str | None = None
    kmeans: KMeansMethod = "auto"
    kmeans_on: Literal["cpu", "gpu"] = "cpu"
    prototype: PrototypeKind = "mean"
    latent: LatentKind = "sample"
    resolution: int | None = None
    image_size: int | None = None
    format: ImageFormat = "png"
    prompts: str | None = None
    allow_unknown_prompts: bool = False
    preset: PresetName = "reference"
    scheduler: Scheduler = Preset.scheduler
    strength: float = Preset.strength
    guidance: float = Preset.guidance
    guidance_interval: str = Preset.guidance_interval
    steps: int = Preset.steps
    negative_prompt: str = NEGATIVE_PROMPT
    seed: int = 0
    batch_size: int | Literal["auto"] = "auto"
    threads: int | None = None
    engine: Engine = "auto"
    precision: Precision = "auto"
    compile: bool = False
    device: str = "auto"
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        for name in ("ipc", "steps", "resolution", "image_size", "batch_size", "threads"):
            value = getattr(self, name)
            require(
                value in (None, "auto") or value >= 1, f"--{name.replace('_', '-')} must be at least 1, not {value}"
            )
        require(0 < self.strength <= 1, f"--strength must be in (0, 1], not {self.strength}")
        require(
            math.isfinite(self.guidance) and self.guidance >= 0, f"--guidance must be at least 0, not {self.guidance}"
        )
        require(
            int(self.steps * self.strength) >= 1,
            f"--steps {self.steps} at --strength {self.strength} is no step at all",
        )
        require(
            not self.compile or self.engine not in get_args(ExportedEngine),
            f"--compile is for --engine torch, not for --engine {self.engine}",
        )
        low, high = self.interval
        require(0 <= low <= high <= 1, f"--guidance-interval {self.guidance_interval}: not 0 <= LOW <= HIGH <= 1")
        require(0 <= self.max_bad_fraction < 1, f"--max-bad-fraction must be in [0, 1), not {self.max_bad_fraction}")

    @property
    def interval(self) -> tuple[float, float]:
        """`guidance_interval` as numbers."""
        match = _INTERVAL.fullmatch(self.guidance_interval)
        if match is None:
            raise UsageError(f"--guidance-interval {self.guidance_interval}: not LOW:HIGH, 0.2:0.6 for example")
        return float(match[1]), float(match[2])

    @property
    def unproven(self) -> bool:
        """Whether what saves UNet calls is set otherwise than in the official code."""
        return any(getattr(self, f) != getattr(Preset, f) for f in ("scheduler", "steps", "guidance_interval"))

    @classmethod
    def of_preset(cls, preset: PresetName, **options: Any) -> DistillConfig:
        """With the preset's value for each of its settings that is missing in `options`, or None there."""
        given = {name: value for name, value in options.items() if value is not None}
        return cls(preset=preset, **{**dataclasses.asdict(PRESETS[preset]), **given})


@dataclass(frozen=True)
class ExportConfig:
    """Options of `d4m-fast export`.

    Attributes:
        model, revision, resolution, device: as in `DistillConfig`.
        data: real images whose prototypes PyTorch and the export are compared on.
        target: compute capabilities to build TensorRT engines for ahead of time, "sm80,sm89"; None is the GPU here.
        static_batch: images per call the networks are fixed to; None leaves the batch free.
        max_batch: images per call of the largest profile of an engine.
        level: of TensorRT's builder, 0 (quick to build) to 5.
        images: to compare on, and to calibrate fp16 with.
        threads: of the comparison and of the timing, CPU.
    """

    model: str = "bundled"
    data: str = "bundled"
    revision: str | None = None
    engine: ExportedEngine = "onnx"
    precision: FloatType = "fp32"
    target: str | None = None
    resolution: int | None = None
    static_batch: int | None = None
    max_batch: int = 50
    level: int = 3
    images: int = 32
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("resolution", "static_batch", "max_batch", "images", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, not {value}")
        require(0 <= self.level <= 5, f"--level must be 0 to 5, not {self.level}")
        require(self.target is None or self.engine == "tensorrt", "--target is for --engine tensorrt")
        for target in self.targets:
            require(re.fullmatch(r"sm\d{2,3}", target) is not None, f"--target {target}: not of the form sm89")

    @property
    def targets(self) -> tuple[str, ...]:
        return () if self.target is None else tuple(sorted(set(self.target.lower().split(","))))


@dataclass(frozen=True)
class CertifyConfig:
    """Options of `d4m-fast certify`.

    Attributes:
        model, revision, data, resolution, device: as in `DistillConfig`; prototypes of the data are the probe.
        images: to compare engines on; None is 32, fewer where the CPU would need long for the reference.
        seconds: of steady state that each stage of each engine is timed for.
        batches: images per call to try, comma-separated; None is every power of two until it no longer pays.
        threads: CPU.
        compile: torch.compile on a CPU, too; on a GPU it always is among the engines.
    """

    model: str = "bundled"
    data: str = "bundled"
    revision: str | None = None
    resolution: int | None = None
    images: int | None = None
    seconds: float = 60.0
    batches: str | None = None
    device: str = "auto"
    threads: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("resolution", "images", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, not {value}")
        require(self.images is None or self.images >= 2, "--images must be at least 2: a mixed-up batch needs two rows")
        require(math.isfinite(self.seconds) and self.seconds > 0, f"--seconds must be above 0, not {self.seconds}")
        require(
            self.batches is None or re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", self.batches) is not None,
            f"--batches {self.batches}: not numbers of images up to 99999, as in 1,8,64",
        )

    @property
    def sizes(self) -> tuple[int, ...] | None:
        return None if self.batches is None else tuple(sorted({int(b) for b in self.batches.split(",")}))


def require(condition: bool, message: str) -> None:
    """Refuse an option with exit code 2."""
    if not condition:
        raise UsageError(message)


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value: equal values, equal fingerprints, on any machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def as_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def derive_seed(*parts: object) -> int:
    """The first 63 bits of SHA-256("seed/class id/index/stage"), of whatever parts: one random stream for each."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
