"""Options of `d4m-fast teach`."""

from __future__ import annotations

from dataclasses import dataclass

from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.fields import Group, check_bounds, same_as, setting


@dataclass(frozen=True)
class TeachConfig:
    """Options of `d4m-fast teach`; the order of the fields is that of a teaching's record.

    Attributes:
        arch: name of `evaluation.students.build_student`.
        resolution: pixels along each side of the images it learns from, and labels.
        flip: whether images may be mirrored; letters and digits may not.
        lr: the largest of the cycle.
    """

    arch: str = setting(
        "convnet-3-128-bn",
        group=Group.EVERYDAY,
        help="convnet-DEPTH-WIDTH-bn, or a name of torchvision or timm.",
    )
    epochs: int = setting(30, group=Group.EVERYDAY, help="Passes over the images.", minimum=1, maximum=9999)
    resolution: int = setting(32, group=Group.DATA, help="Side of the images.", minimum=8, maximum=1024)
    flip: bool = setting(True, group=Group.DATA, help="Mirror half of the images, anew in every epoch.")
    batch_size: int = setting(128, group=Group.STUDENTS, help="Images per step.", minimum=2, maximum=65536)
    lr: float = setting(0.05, group=Group.STUDENTS, help="Largest learning rate of SGD.", above=0, maximum=10)
    seed: int = setting(0, group=Group.STUDENTS, help="Of the first weights and the order of the images.", minimum=0)
    device: str = same_as(DistillConfig, "device", help="Where to train: auto, cpu, cuda or cuda:1.")

    def __post_init__(self) -> None:
        check_bounds(self)
