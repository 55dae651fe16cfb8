"""Options of `d4m-fast distill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from d4m_fast.config.choices import (
    Engine,
    ImageFormat,
    KMeansDevice,
    KMeansMethod,
    LatentKind,
    OutputForm,
    Precision,
    PresetName,
    PrototypeKind,
    Scheduler,
    SmallClasses,
)
from d4m_fast.config.fields import MOST_THREADS, Group, check_bounds, same_as, setting
from d4m_fast.config.generation import PRESETS, UNPROVEN, GenerationConfig, Preset
from d4m_fast.errors import require

NEGATIVE_PROMPT = "cartoon, anime, painting"  # the official code's; the paper's main text has none
_FASTER_PRESETS = ", ".join(name for name in PRESETS if name != "reference")


@dataclass(frozen=True)
class DistillConfig(GenerationConfig):
    """Options of `d4m-fast distill`; the defaults are D4M's (Su et al., 2024; official code, `gen_syn_image`).

    `of_preset` fills in another preset's settings; built directly, `preset` is but a name. The order of the fields is
    that of a run's config.json.

    Attributes:
        data: "bundled", or where the images are; `sources.dataset.open_source` says in what they may be.
        model: "bundled", a directory in diffusers format, or a hub id ("organisation/model").
        revision: commit, tag or branch of a model from the hub; None is what its `main` is.
        classes: ids, ranges or folder names, comma-separated; None is all.
        resolution: side of the encoded and generated images, in pixels; None is the model's own.
        image_size: side of the written images; None is `resolution`.
        prompts: None for the class names, "official", or a file.
        allow_unknown_prompts: also those that a model which lists the prompts it knows does not list.
        kmeans_on: "gpu" clusters where the networks run, by kernels that we have run on CPUs only.
        batch_size, threads: "auto" and None let the plan decide; they are part of what fixes the bytes.
        max_bad_fraction: images left out (damaged, or that no decoder reads) that are tolerated, as a part of all.
    """

    # What is distilled, and with which model.
    data: str = setting(
        "bundled",
        group=Group.EVERYDAY,
        help="'bundled', or where images are: class folders, tars, parquet, a torchvision root; docs/data.md.",
    )
    model: str = setting(
        "bundled", group=Group.EVERYDAY, help="'bundled', a directory in diffusers format, or a hub id."
    )
    revision: str | None = setting(
        None,
        group=Group.MODEL,
        help="Commit, tag or branch of a model from the hub.",
        default_text="main, recorded as a commit",
    )
    ipc: int = setting(10, group=Group.EVERYDAY, help="Images per class.", minimum=1)
    small_classes: SmallClasses = setting(
        "refuse",
        group=Group.DATA,
        help="Of a class with fewer images than --ipc, make as many as it has (fewer), or several of each, from other"
        " noise (repeat).",
    )
    classes: str | None = setting(
        None,
        group=Group.DATA,
        help="Only these ids, ranges or folder names, comma-separated; ids stay those of the full set.",
        default_text="all",
    )
    # Clusters of the latents, one per image.
    kmeans: KMeansMethod = setting("auto", group=Group.CLUSTERING, help="minibatch is the official code's.")
    kmeans_on: KMeansDevice = setting(
        "cpu", group=Group.CLUSTERING, help="gpu: CuPy kernels, on --device; not yet run on one by us."
    )
    prototype: PrototypeKind = setting(
        "mean", group=Group.CLUSTERING, help="Cluster mean, or the real latent nearest to it."
    )
    latent: LatentKind = setting(
        "sample", group=Group.CLUSTERING, help="Draw from the VAE's posterior, or take its mean."
    )
    # Pixels.
    resolution: int | None = setting(
        None, group=Group.MODEL, help="Side of encoded and generated images.", default_text="the model's", minimum=1
    )
    image_size: int | None = setting(
        None, group=Group.OUTPUT, help="Side of the written images.", default_text="the resolution", minimum=1
    )
    format: ImageFormat = setting(
        "png", group=Group.OUTPUT, help="png is lossless; jpeg (4:4:4) and webp have quality 95."
    )
    output: OutputForm = setting(
        "imagefolder",
        group=Group.OUTPUT,
        help="imagefolder is what a run holds; others are made of it in its folder outputs, as d4m-fast convert does.",
    )
    # Prompts.
    prompts: str | None = setting(
        None, group=Group.DATA, help="'official', or a file of prompts.", default_text="class names"
    )
    allow_unknown_prompts: bool = setting(False, group=Group.DATA, help="Prompts the model says it does not know, too.")
    # Generation, from prototypes and prompts.
    preset: PresetName = setting(
        "reference",
        group=Group.GENERATION,
        help=f"Settings of generation. reference: the official ones. {_FASTER_PRESETS}: fewer UNet calls, {UNPROVEN};"
        " docs/presets.md has what they cost and give.",
    )
    scheduler: Scheduler = same_as(Preset, "scheduler")
    strength: float = same_as(Preset, "strength")
    guidance: float = same_as(Preset, "guidance")
    guidance_interval: str = same_as(Preset, "guidance_interval")
    steps: int = same_as(Preset, "steps")
    negative_prompt: str = setting(NEGATIVE_PROMPT, group=Group.GENERATION, help="Prompt to be guided away from.")
    seed: int = setting(0, group=Group.GENERATION, help="Seed of the run.")
    # The machine.
    batch_size: int | Literal["auto"] = setting(
        "auto",
        group=Group.MACHINE,
        help="Most images per batch of generation; auto: by memory, and probed in long runs.",
        minimum=1,
    )
    threads: int | None = setting(
        None, group=Group.MACHINE, help="CPU threads.", default_text="one per core", minimum=1, maximum=MOST_THREADS
    )
    engine: Engine = setting("auto", group=Group.EVERYDAY, help="What computes the networks.")
    precision: Precision = setting("auto", group=Group.MACHINE, help="auto: fp16 on GPUs, fp32 on CPUs.")
    compile: bool = setting(False, group=Group.MACHINE, help="UNet and VAE through torch.compile; for --engine torch.")
    device: str = setting("auto", group=Group.MACHINE, help="auto, cpu, cuda or cuda:1.")
    max_bad_fraction: float = setting(
        0.01, group=Group.DATA, help="Unreadable images tolerated, as a part of all.", minimum=0, below=1
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        self.check_generation()
        require(
            not self.compile or self.engine in ("auto", "torch"),
            f"--compile is for --engine torch, not for --engine {self.engine}",
        )
