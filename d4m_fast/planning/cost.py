"""Costs of a run before it starts: every figure calculated, each with its formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from d4m_fast.config.choices import FloatType
from d4m_fast.config.plan import PlanConfig
from d4m_fast.engine.artifacts import ELEMENTS
from d4m_fast.errors import require
from d4m_fast.measure.flops import Shapes, Traced
from d4m_fast.measure.gpus import Gpu

PEAK_SHARES = (0.15, 0.50)  # of a GPU's peak: what published single-image stacks reach, and what large batches may
MEMORY_SHARE = 0.9  # of a GPU's memory, the rest for the context and fragments
BYTES = {"fp16": 2, "fp32": 4}

Unit = Literal["", "FLOP", "hours", "bytes", "seconds"]


@dataclass(frozen=True)
class PlanRequest:
    """Data, model calls and hardware that a plan is for.

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
    """A calculated number, or range, and its formula, with numbers put in."""

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
"""FLOP, and the share of the peak that they reach."""
ASSUMED = Share(*PEAK_SHARES, "assumed until calibrated")


def plan_figures(request: PlanRequest, shapes: Shapes, student: Traced, shares: Shares) -> list[Figure]:
    """Calculate all figures of a plan, in the order of the stages.

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
    """Return the FLOP of one distilled image: guided UNet calls and the decoder."""
    return request.samples * shapes.networks["unet"].flops + shapes.networks["vae_decoder"].flops


def _per_image(request: PlanRequest, shapes: Shapes) -> list[Figure]:
    figures = []
    for name, network in shapes.networks.items():
        formula = "FlopCounterMode, batch 1, 2 per multiply-add"
        figures.append(_exactly(name, "parameters", network.parameters, "", "sum over the traced network"))
        figures.append(_exactly(name, "per sample", network.flops, "FLOP", formula))
    unet, decoder = shapes.networks["unet"].flops, shapes.networks["vae_decoder"].flops
    formula = f"{request.samples} samples x {unet:.4g} + decoder {decoder:.4g}"
    split = f"{request.calls} calls, {request.guided_calls} of them with both halves of guidance"
    return [
        *figures,
        _exactly("generation", "UNet calls per image", request.calls, "", "steps the scheduler runs at this strength"),
        _exactly("generation", "UNet samples per image", request.samples, "", split),
        _exactly("generation", "per image", image_flops(request, shapes), "FLOP", formula),
    ]


def _stage(stage: str, formula: str, request: PlanRequest, *work: Work) -> list[Figure]:
    """Return a stage's FLOP, its GPU-hours over all of its work, and the hours of all GPUs side by side."""
    peak, gpus = request.gpu.flops[request.precision], request.gpus
    total: float = 0
    low, high, terms = 0.0, 0.0, []
    for flops, share in work:
        total += flops
        low += flops / (peak * share.high) / 3600
        high += flops / (peak * share.low) / 3600
        shares = f"{share.low:.3g} to {share.high:.3g}, {share.source}"
        terms.append(f"{flops:.4g} FLOP / ({peak:.4g} FLOP/s x {shares})")
    return [
        _exactly(stage, "all", total, "FLOP", formula),
        Figure(stage, "GPU-hours", low, high, "hours", f"({' + '.join(terms)}) / 3600"),
        Figure(stage, "hours", low / gpus, high / gpus, "hours", f"GPU-hours / {gpus} GPUs, if none waits"),
    ]


def _encoding(request: PlanRequest, shapes: Shapes, shares: Shares) -> list[Figure]:
    per_image = shapes.networks["vae_encoder"].flops
    formula = f"{request.images:,} images x {per_image:.4g}"
    return _stage("encoding", formula, request, (request.images * per_image, shares.get("encode", ASSUMED)))


def _generation(request: PlanRequest, shapes: Shapes, shares: Shares) -> list[Figure]:
    per_image, per_prompt = image_flops(request, shapes), shapes.networks["text_encoder"].flops
    prompts, decoder = request.classes + request.guided, shapes.networks["vae_decoder"].flops
    formula = f"{request.distilled:,} images x {per_image:.4g} + {prompts:,} prompts x {per_prompt:.4g}"
    # The text encoder, a network of the UNet's kind, and a decoder that was not measured have the UNet's share.
    unet_share = shares.get("unet", ASSUMED)
    denoising = (request.distilled * (per_image - decoder) + prompts * per_prompt, unet_share)
    decoding = (request.distilled * decoder, shares.get("decode", unet_share))
    return _stage("generation", formula, request, denoising, decoding)


def _training(request: PlanRequest, student: Traced, shares: Shares) -> list[Figure]:
    # A backward pass computes two products for each of the forward's, so that both together are three forwards; the
    # teacher that labels each step's pixels is one more.
    samples = request.students * request.epochs * request.distilled
    formula = (
        f"{request.students} students x {request.epochs} epochs x {request.distilled:,} images"
        f" x (3 + 1 teacher) x {student.flops:.4g}"
    )
    return _stage("students", formula, request, (samples * 4 * student.flops, shares.get("students", ASSUMED)))


def _disk(request: PlanRequest, shapes: Shapes) -> list[Figure]:
    c, h, w = shapes.latent
    images, side, n = request.images, request.image_size, request.distilled
    labels, labels_formula = 0, "made in the loop: none kept"
    if request.stored_labels:
        labels = 2 * request.epochs * n * request.classes
        labels_formula = f"{request.epochs} epochs x {n:,} x {request.classes:,} x 2"
    return [
        _exactly("disk", "latents", 2 * images * c * h * w, "bytes", f"{images:,} x {c}x{h}x{w} x 2"),  # fp16
        _exactly("disk", "prototypes", 4 * n * c * h * w, "bytes", f"{n:,} x {c}x{h}x{w} x 4"),  # fp32
        _exactly("disk", "images, at most", 3 * n * side**2, "bytes", f"{n:,} x 3x{side}x{side}, uncompressed"),
        _exactly("disk", "soft labels", labels, "bytes", labels_formula),
    ]


def _memory(request: PlanRequest, shapes: Shapes) -> list[Figure]:
    size = BYTES[request.precision]
    weights = size * shapes.parameters
    figures = [_exactly("memory", "weights", weights, "bytes", f"{shapes.parameters:,} parameters x {size}")]
    batches = []
    for name, rows in (("unet", 1 + request.guided), ("vae_decoder", 1), ("vae_encoder", 1)):
        network = shapes.networks[name]
        per_image = rows * size * network.activations
        formula = f"{rows} x {network.activations:,} numbers alive x {size}"
        figures.append(_exactly("memory", f"{name} per image", per_image, "bytes", formula))
        formula = (
            f"largest power of two with {weights:.4g} + batch x {per_image:.4g}"
            f" <= {MEMORY_SHARE:g} x {request.gpu.memory:.4g}"
            f" bytes and batch x {rows * network.largest:,} elements < 2^31; the fastest may be smaller: profile it"
        )
        batches.append(_exactly("batch", name, best_batch(request, shapes, name, rows), "", formula))
    return [*figures, *batches]


def best_batch(request: PlanRequest, shapes: Shapes, name: str, rows: int) -> int:
    """Return the largest power of two of images that fits; 0 if not even one does."""
    size = BYTES[request.precision]
    most = most_images(shapes.networks[name], rows, size, MEMORY_SHARE * request.gpu.memory - size * shapes.parameters)
    return 2 ** int(math.log2(most)) if most >= 1 else 0


def most_images(network: Traced, rows: int, size: int, free: float) -> float:
    """Return how many images fit into `free` bytes and below 2^31 elements.

    Args:
        rows: samples per image.
        size: bytes of a number.
    """
    return min(free / (rows * size * network.activations), ELEMENTS / (rows * network.largest))
