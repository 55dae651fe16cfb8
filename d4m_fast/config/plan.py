"""Options of `d4m-fast plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from d4m_fast.config.choices import Engine, FloatType, GpuName, PresetName, Scheduler
from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.fields import Group, check_bounds, same_as, setting
from d4m_fast.config.generation import GenerationConfig, Preset
from d4m_fast.errors import UsageError

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000  # of ImageNet-1K's training split


@dataclass(frozen=True)
class PlanConfig(GenerationConfig):
    """Options of `d4m-fast plan`.

    Attributes:
        model: "sd15" is the shapes of Stable Diffusion 1.5, without weights; else as in `DistillConfig`.
        data: a dataset whose images and classes are counted; None is `images` and `classes`.
        engine: whose rows of `calibrate` count; "auto" is the fastest's.
        calibrate: a profile's JSON or a certificate, whose measured shares of peak replace assumed ones.
        student, student_size, epochs, students: of the evaluation; sides are in pixels.
        stored_labels: soft labels of every image and epoch are kept on the disk instead of made in the loop.
    """

    # The run.
    model: str = same_as(
        DistillConfig, "model", default="sd15", help="'sd15' (shapes only), 'bundled', a directory, or a hub id."
    )
    revision: str | None = same_as(DistillConfig, "revision", default_text="main")
    data: str | None = setting(None, group=Group.DATA, help="A dataset to count, instead of --images and --classes.")
    images: int | None = setting(
        None, group=Group.DATA, help="Real images.", default_text=f"{IMAGENET_IMAGES}, ImageNet-1K's", minimum=1
    )
    classes: int | None = setting(
        None, group=Group.DATA, help="How many.", default_text=f"{IMAGENET_CLASSES}", minimum=1
    )
    ipc: int = same_as(DistillConfig, "ipc")
    preset: PresetName = same_as(DistillConfig, "preset")
    scheduler: Scheduler = same_as(Preset, "scheduler")
    steps: int = same_as(Preset, "steps")
    strength: float = same_as(Preset, "strength")
    guidance: float = same_as(Preset, "guidance")
    guidance_interval: str = same_as(Preset, "guidance_interval")
    resolution: int | None = same_as(DistillConfig, "resolution", help="Side of generated images.")
    image_size: int | None = same_as(DistillConfig, "image_size")
    engine: Engine = same_as(
        DistillConfig,
        "engine",
        group=Group.MEASUREMENT,
        help="Whose rows of --calibrate count; auto: the fastest's.",
    )
    # The machine.
    precision: FloatType = setting("fp16", group=Group.MACHINE, help="Of the networks.")
    gpu: GpuName = setting("h100", group=Group.EVERYDAY, help="Which GPU.")
    gpus: int = setting(1, group=Group.EVERYDAY, help="How many of them.", minimum=1)
    # The evaluation.
    student: str = setting(
        "resnet18", group=Group.STUDENTS, help="convnet3, convnet-DEPTH-WIDTH, or a name of torchvision or timm."
    )
    student_size: int = setting(224, group=Group.STUDENTS, help="Pixels of a side.", minimum=32, maximum=4096)
    epochs: int = setting(300, group=Group.STUDENTS, help="Of a student's training.", minimum=1)
    students: int = setting(3, group=Group.STUDENTS, help="How many are trained.", minimum=1)
    stored_labels: bool = setting(
        False, group=Group.STUDENTS, help="Soft labels of every epoch kept on the disk, fp16."
    )
    # What was measured already.
    calibrate: Path | None = setting(
        None, group=Group.MEASUREMENT, help="A profile's JSON, or certify.json.", default_text="15% to 50% of the peak"
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        self.check_generation()
        if self.data is not None and (self.images is not None or self.classes is not None):
            raise UsageError("--data counts images and classes itself; leave --images and --classes out, or --data")
