"""Options of `d4m-fast evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from d4m_fast.config.choices import LabelKind
from d4m_fast.config.fields import MOST_THREADS, Group, available_threads, check_bounds, setting


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of `d4m-fast evaluate`.

    Attributes:
        train_data, test_data: real images; None is what the run was made from.
        teacher: "bundled" or a directory; asked for soft labels only.
        width: channels of the student's convolutions.
        seeds: how many students of each arm are trained.
        workers: how many are trained side by side.
    """

    train_data: str | None = setting(
        None,
        group=Group.EVERYDAY,
        help="Real images for the random arm.",
        default_text="what the run was made from",
    )
    test_data: str | None = setting(
        None,
        group=Group.EVERYDAY,
        help="Real test images.",
        default_text="the test split of what the run was made from",
    )
    teacher: str = setting("bundled", group=Group.STUDENTS, help="Teacher directory, for soft labels.")
    student: Literal["convnet3"] = setting("convnet3", group=Group.STUDENTS, help="Network that is trained.")
    # The published ConvNet-3 is 128 wide.
    width: int = setting(128, group=Group.STUDENTS, help="Channels of the student.", minimum=1, maximum=4096)
    protocol: Literal["small"] = setting("small", group=Group.STUDENTS, help="Recipe of the training.")
    label_kind: LabelKind = setting("soft", group=Group.EVERYDAY, help="The teacher's probabilities, or class ids.")
    seeds: int = setting(3, group=Group.EVERYDAY, help="Students per arm.", minimum=1, maximum=1000)
    workers: int = setting(
        factory=available_threads,
        group=Group.MACHINE,
        help="Students trained side by side.",
        default_text="one per core",
        minimum=1,
        maximum=MOST_THREADS,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
