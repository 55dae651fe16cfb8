"""Options of `d4m-fast export`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from d4m_fast.config.choices import ExportedEngine, FloatType
from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.fields import MOST_IMAGES_PER_CALL, Group, available_threads, check_bounds, same_as, setting
from d4m_fast.errors import require


@dataclass(frozen=True)
class ExportConfig:
    """Options of `d4m-fast export`; the order of the fields is that of a certificate's.

    Attributes:
        data: real images whose prototypes PyTorch and the export are compared on.
        target: compute capabilities to build TensorRT engines for ahead of time, "sm80,sm89"; None is the GPU here.
        static_batch: images per call the networks are fixed to; None leaves the batch free.
        max_batch: images per call of the largest profile of an engine.
        level: of TensorRT's builder, 0 (quick to build) to 5.
        images: to compare on, and to calibrate fp16 with.
        threads: of the comparison and of the timing, CPU.
    """

    # What is exported, and the images it is compared on.
    model: str = same_as(DistillConfig, "model", help="'bundled', a directory, or a hub id.")
    data: str = same_as(DistillConfig, "data", help="Real images to compare engines on.")
    revision: str | None = same_as(DistillConfig, "revision", default_text="main")
    engine: ExportedEngine = setting("onnx", group=Group.EVERYDAY, help="Whose format to export to.")
    precision: FloatType = setting("fp32", group=Group.EVERYDAY, help="Of the exported networks.")
    target: str | None = setting(
        None,
        group=Group.MACHINE,
        help="Build engines ahead of time, for these: sm80,sm89.",
        default_text="the GPU here",
    )
    resolution: int | None = same_as(DistillConfig, "resolution", help="Side of the images.")
    static_batch: int | None = setting(
        None,
        group=Group.MODEL,
        help="Images per call, fixed.",
        default_text="any number",
        minimum=1,
        maximum=MOST_IMAGES_PER_CALL,
    )
    max_batch: int = setting(
        50, group=Group.MODEL, help="Images an engine takes.", minimum=1, maximum=MOST_IMAGES_PER_CALL
    )
    level: int = setting(3, group=Group.MODEL, help="Of TensorRT's builder.", minimum=0, maximum=5)
    # How it is compared, and where.
    images: int = setting(32, group=Group.MEASUREMENT, help="To compare engines on.", minimum=1)
    device: str = same_as(DistillConfig, "device", help="Where to compare: auto, cpu, cuda or cuda:1.")
    threads: int = same_as(DistillConfig, "threads", factory=available_threads)

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.target is None or self.engine == "tensorrt", "--target is for --engine tensorrt")
        for target in self.targets:
            require(re.fullmatch(r"sm\d{2,3}", target) is not None, f"--target {target}: not of the form sm89")

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities of `target`, each once."""
        return () if self.target is None else tuple(sorted(set(self.target.lower().split(","))))
