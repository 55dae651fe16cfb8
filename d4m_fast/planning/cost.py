"""What a run costs before it is run: every figure calculated, each with its formula."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from d4m_fast.config.choices import FloatType
from d4m_fast.config.plan import PlanConfig
from d4m_fast.errors import require
from d4m_fast.measure.flops import Shapes, Traced
from d4m_fast.measure.gpus import Gpu

SHARES = (0.15, 0.50)  # of a GPU's peak: what published single-image stacks reach, and what large batches may
ELEMENTS = 2**31 - 1  # beyond which many kernels' 32-bit indices overflow
ROOM = 0.9  # of a GPU's memory, the rest for the context and fragments
BYTES = {"fp16": 2, "fp32": 4}

Unit = Literal["", "FLOP", "hours", "bytes", "seconds"]


@dataclass(frozen=True)
class PlanRequest:
    """What is to be planned.

    Attributes:
        images, classes, ipc: of the data, and images to make per class.
        calls: UNet calls per image, the schedule's own count.
        guided_calls: those that run both halves of guidance, two samples instead of one.
        image_size: side of the written images, pixels.
        gpus: how many share the work.
        epochs, student_size: of the students' training; side of its images, pixels.
        students: how many are trained.
        stored_labels: soft labels of every image and epoch are kept on the disk instead of made in the loop.
    """

    images: int
    classes: int
    ipc: int
    calls: int
    guided_calls: int
    image_size: int
    gpu: Gpu
    gpus: int = PlanConfig.gpus
    precision: FloatType = PlanConfig.precision
    epochs: int = PlanConfig.epochs
    student_size: int = PlanConfig.student_size
    students: int = PlanConfig.students
    stored_labels: bool = PlanConfig.stored_labels

    def __post_init__(self) -> None:
        require(
            self.classes * self.ipc <= self.images,
            f"--classes {self.classes} of --ipc {self.ipc} need at least {self.classes * self.ipc:,} --images,"
            f" not {self.images:,}",
        )

    @property
    def distilled(self) -> int:
        return self.classes * self.ipc

    @property
    def guided(self) -> bool:
        return self.guided_calls > 0

    @property
    def samples(self) -> int:
        """UNet samples per image: what its cost is proportional to."""
        return self.calls + self.guided_calls


@dataclass(frozen=True, slots=True)
class Figure:
    """One calculated number, or range; `formula` is with its numbers in."""

    stage: str
    name: str
    low: float
    high: float
    unit: Unit
    formula: str


@dataclass(frozen=True, slots=True)
class Share:
    """The part of its peak that a stage reaches, from `low` to `high`, and who says so."""

    low: float
    high: float
    source: str


Shares = Mapping[str, Share]
Work = tuple[float, Share]
"""FLOP, and the part of the peak they are done at."""
ASSUMED = Share(*SHARES, "assumed until calibrated")


def plan_figures(request: PlanRequest, shapes: Shapes, student: Traced, shares: Shares) -> list[Figure]:
    """All figures of a plan, in the order of the stages.

    Args:
        student: forward pass of a student (and of a teacher of its kind) on one image.
        shares: by network, as far as they were measured.
    """
    return [
        *_per_image(request, shapes),
        *_encoding(request, shapes, shares),
        *_generation(request, shapes, shares),
        *_training(request, student, shares),
        *_disk(request, shapes),
        *_memory(request, shapes),
    ]


def _exactly(stage: str, name: str, value: float, unit: Unit, formula: str) -> Figure:
    return Figure(stage, name, value, value, unit, formula)


def image_flops(request: PlanRequest, shapes: Shapes) -> int:
    """FLOP of one distilled image: guided UNet calls and the decoder."""
    return request.samples * shapes.parts["unet"].flops + shapes.parts["vae_decoder"].flops


def _per_image(request: PlanRequest, shapes: Shapes) -> list[Figure]:
    figures = []
    for name, part in shapes.parts.items():
        figures.append(_exactly(name, "parameters", part.parameters, "", "sum over the traced network"))
        figures.append(_exactly(name, "per sample", part.flops, "FLOP", "FlopCounterMode, batch 1, 2 per multiply-add"))
    unet, decoder = shapes.parts["unet"].flops, shapes.parts["vae_decoder"].flops
    formula = f"{request.samples} samples x {unet:.4g} + decoder {decoder:.4g}"
    split = f"{request.calls} calls, {request.guided_calls} of them with both halves of guidance"
    return [
        *figures,
        _exactly("generation", "UNet calls per image", request.calls, "", "steps the scheduler runs at this strength"),
        _exactly("generation", "UNet samples per image", request.samples, "", split),
        _exactly("generation", "per image", image_flops(request, shapes), "FLOP", formula),
    ]


def _hours(stage: str, work: Sequence[Work], request: PlanRequest) -> Figure:
    peak = request.gpu.flops[request.precision]
    low, high = (
        sum(flops / (peak * part) / 3600 for flops, part in parts)
        for parts in ([(flops, s.high) for flops, s in work], [(flops, s.low) for flops, s in work])
    )
    terms = (f"{flops:.4g} FLOP / ({peak:.4g} FLOP/s x {s.low:.3g} to {s.high:.3g}, {s.source})" for flops, s in work)
    return Figure(stage, "GPU-hours", low, high, "hours", f"({' + '.join(terms)}) / 3600")


def _wall(figure: Figure, gpus: int) -> Figure:
    formula = f"GPU-hours / {gpus} GPUs, if none waits"
    return Figure(figure.stage, "hours", figure.low / gpus, figure.high / gpus, "hours", formula)


def _stage(stage: str, formula: str, request: PlanRequest, *work: Work) -> list[Figure]:
    hours, flops = _hours(stage, work, request), sum(flops for flops, _ in work)
    return [_exactly(stage, "all", flops, "FLOP", formula), hours, _wall(hours, request.gpus)]


def _encoding(request: PlanRequest, shapes: Shapes, shares: Shares) -> list[Figure]:
    each = shapes.parts["vae_encoder"].flops
    formula = f"{request.images:,} images x {each:.4g}"
    return _stage("encoding", formula, request, (request.images * each, shares.get("encode", ASSUMED)))


def _generation(request: PlanRequest, shapes: Shapes, shares: Shares) -> list[Figure]:
    """The text encoder, a network of the UNet's kind, and a decoder that was not measured have the UNet's share."""
    each, text = image_flops(request, shapes), shapes.parts["text_encoder"].flops
    prompts, decoder = request.classes + request.guided, shapes.parts["vae_decoder"].flops
    formula = f"{request.distilled:,} images x {each:.4g} + {prompts:,} prompts x {text:.4g}"
    unet = shares.get("unet", ASSUMED)
    calls = (request.distilled * (each - decoder) + prompts * text, unet)
    return _stage("generation", formula, request, calls, (request.distilled * decoder, shares.get("decode", unet)))


def _training(request: PlanRequest, student: Traced, shares: Shares) -> list[Figure]:
    """Forward and backward are three forwards; the teacher that labels each step's pixels is one more."""
    seen = request.students * request.epochs * request.distilled
    formula = (
        f"{request.students} students x {request.epochs} epochs x {request.distilled:,} images"
        f" x (3 + 1 teacher) x {student.flops:.4g}"
    )
    return _stage("students", formula, request, (seen * 4 * student.flops, shares.get("students", ASSUMED)))


def _disk(request: PlanRequest, shapes: Shapes) -> list[Figure]:
    c, h, w = shapes.latent
    side, made = request.image_size, request.distilled
    labels = 2 * request.epochs * made * request.classes if request.stored_labels else 0
    how = f"{request.epochs} epochs x {made:,} x {request.classes:,} x 2" if labels else "made in the loop: none kept"
    return [
        _exactly("disk", "latents", 2 * request.images * c * h * w, "bytes", f"{request.images:,} x {c}x{h}x{w} x 2"),
        _exactly("disk", "prototypes", 4 * made * c * h * w, "bytes", f"{made:,} x {c}x{h}x{w} x 4"),
        _exactly("disk", "images, at most", 3 * made * side**2, "bytes", f"{made:,} x 3x{side}x{side}, uncompressed"),
        _exactly("disk", "soft labels", labels, "bytes", how),
    ]


def _memory(request: PlanRequest, shapes: Shapes) -> list[Figure]:
    size = BYTES[request.precision]
    weights = size * shapes.parameters
    figures = [_exactly("memory", "weights", weights, "bytes", f"{shapes.parameters:,} parameters x {size}")]
    batches = []
    for name, rows in (("unet", 1 + request.guided), ("vae_decoder", 1), ("vae_encoder", 1)):
        part = shapes.parts[name]
        each = rows * size * part.activations
        batch = best_batch(request, shapes, name, rows)
        figures.append(
            _exactly(
                "memory", f"{name} per image", each, "bytes", f"{rows} x {part.activations:,} numbers alive x {size}"
            )
        )
        batches.append(
            _exactly(
                "batch",
                name,
                batch,
                "",
                f"largest power of two with {weights:.4g} + batch x {each:.4g} <= {ROOM:g} x {request.gpu.memory:.4g}"
                f" bytes and batch x {rows * part.largest:,} elements < 2^31; the fastest may be smaller: profile it",
            )
        )
    return [*figures, *batches]


def best_batch(request: PlanRequest, shapes: Shapes, name: str, rows: int) -> int:
    """The largest power of two of images that fits; 0 if not even one does."""
    size = BYTES[request.precision]
    most = most_images(shapes.parts[name], rows, size, ROOM * request.gpu.memory - size * shapes.parameters)
    return 2 ** int(math.log2(most)) if most >= 1 else 0


def most_images(part: Traced, rows: int, size: int, free: float) -> float:
    """How many fit: `rows` samples each, of numbers of `size` bytes, in `free` bytes and below 2^31 elements."""
    return min(free / (rows * size * part.activations), ELEMENTS / (rows * part.largest))
