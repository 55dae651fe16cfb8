"""Options of `d4m-fast certify`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.export import ExportConfig
from d4m_fast.config.fields import (
    MOST_IMAGES_PER_CALL,
    MOST_SECONDS,
    Group,
    available_threads,
    check_bounds,
    same_as,
    setting,
)
from d4m_fast.errors import require


@dataclass(frozen=True)
class CertifyConfig:
    """Options of `d4m-fast certify`; prototypes of the data are the probe.

    Attributes:
        images: to compare engines on; None is 32, fewer where the CPU would need long for the reference.
        seconds: of steady state that each stage of each engine is timed for.
        batches: images per call to try, comma-separated; None is every power of two until it no longer pays.
        compile: torch.compile on a CPU, too; on a GPU it always is among the engines.
    """

    model: str = same_as(ExportConfig, "model")
    data: str = same_as(ExportConfig, "data")
    revision: str | None = same_as(ExportConfig, "revision")
    resolution: int | None = same_as(ExportConfig, "resolution")
    images: int | None = setting(
        None,
        group=Group.MEASUREMENT,
        help="To compare on.",
        default_text="32, fewer of a large model",
        minimum=1,
        maximum=MOST_IMAGES_PER_CALL,
    )
    seconds: float = setting(60.0, group=Group.MEASUREMENT, help="Of each steady state.", above=0, maximum=MOST_SECONDS)
    batches: str | None = setting(
        None,
        group=Group.MEASUREMENT,
        help="Images per call to try: 1,8,64.",
        default_text="powers of two while they pay",
    )
    device: str = same_as(DistillConfig, "device")
    threads: int = same_as(DistillConfig, "threads", factory=available_threads)
    compile: bool = same_as(DistillConfig, "compile", help="torch.compile on a CPU, too.")

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.images is None or self.images >= 2, "--images must be at least 2: a mixed-up batch needs two rows")
        require(
            self.batches is None or re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", self.batches) is not None,
            f"--batches {self.batches}: not numbers of images up to 99999, as in 1,8,64",
        )

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The numbers of `batches`, ascending."""
        return None if self.batches is None else tuple(sorted(set(map(int, self.batches.split(",")))))
