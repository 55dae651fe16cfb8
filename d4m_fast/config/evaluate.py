"""Options of `d4m-fast evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from d4m_fast.config.choices import Coreset, ProtocolName, Regime
from d4m_fast.config.fields import MOST_THREADS, Group, check_bounds, setting


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of `d4m-fast evaluate`.

    Attributes:
        train_data, test_data: real images; None is what the run was made from.
        protocol: one of `PROTOCOLS`.
        regime, student, teacher: several are all tried; none is the protocol's own.
        arms: names separated by commas.
        arm: NAME=DIR each.
        override: FIELD=VALUE each.
        width: channels of a ConvNet's convolutions.
        labels: [ARM=]DIR each; without a name they are the distilled set's.
        top_k: logits that are stored of each image; None is all.
        seeds: how many students of each arm are trained, on each distilled set.
        workers: how many are trained side by side; None is one per core, or per GPU.
        data_parallel: whether all processes of a launcher train each of them together.
        classes: part of the classes; None is all of them.
    """

    train_data: str | None = setting(
        None,
        group=Group.EVERYDAY,
        help="Real images for the other arms.",
        default_text="what the run was made from",
    )
    test_data: str | None = setting(
        None,
        group=Group.EVERYDAY,
        help="Real test images.",
        default_text="the test split of what the run was made from",
    )
    protocol: ProtocolName = setting("small", group=Group.EVERYDAY, help="Recipe of the training; see --protocols.")
    regime: tuple[Regime, ...] = setting(
        (),
        group=Group.EVERYDAY,
        help="Class ids, a few stored views that a teacher labelled, or the teacher in every step; may be repeated.",
        default_text="the protocol's",
    )
    arms: str = setting("distilled,random", group=Group.EVERYDAY, help="Image sets that are compared.")
    arm: tuple[str, ...] = setting((), group=Group.EVERYDAY, help="NAME=DIR, a set of your own; may be repeated.")
    seeds: int = setting(3, group=Group.EVERYDAY, help="Students per arm.", minimum=1, maximum=1000)
    student: tuple[str, ...] = setting(
        (),
        group=Group.STUDENTS,
        help="Network that is trained: convnet3, convnet-DEPTH-WIDTH, a name of torchvision or timm; may be repeated.",
        default_text="the protocol's",
    )
    teacher: tuple[str, ...] = setting(
        (),
        group=Group.STUDENTS,
        help="Network that labels: bundled, a directory of d4m-fast teach, NAME=WEIGHTS; may be repeated, A+B is an"
        " ensemble.",
        default_text="the protocol's",
    )
    matrix: bool = setting(
        False, group=Group.STUDENTS, help="Four students of four families, unless --student says which."
    )
    # The published ConvNet-3 is 128 wide.
    width: int = setting(128, group=Group.STUDENTS, help="Channels of convnet3.", minimum=1, maximum=4096)
    epochs: int | None = setting(
        None, group=Group.STUDENTS, help="Passes over the images.", default_text="the protocol's", minimum=1
    )
    override: tuple[str, ...] = setting(
        (), group=Group.STUDENTS, help="FIELD=VALUE of the protocol, which stands in every output; may be repeated."
    )
    top_k: int | None = setting(
        None, group=Group.STUDENTS, help="Logits that fixed labels keep.", default_text="all", minimum=1
    )
    labels: tuple[str, ...] = setting(
        (),
        group=Group.STUDENTS,
        help="[ARM=]DIR of soft labels, ours or SRe2L's FKD, that --regime fixed replays; may be repeated.",
    )
    coreset: Coreset = setting("herding", group=Group.STUDENTS, help="How the coreset arm is chosen.")
    classes: str | None = setting(
        None,
        group=Group.DATA,
        help="Part of the set: folders, ids and ranges of ids of the test set, or a file of folders.",
        default_text="all",
    )
    unchecked_teacher: bool = setting(
        False, group=Group.STUDENTS, help="Go on with a teacher that fails its check on the test images."
    )
    device: str = setting("auto", group=Group.MACHINE, help="Where students are trained.")
    autocast: Literal["none", "bf16"] = setting(
        "none", group=Group.MACHINE, help="Precision of the forward pass on a GPU."
    )
    compile: bool = setting(False, group=Group.MACHINE, help="torch.compile the students.")
    workers: int | None = setting(
        None,
        group=Group.MACHINE,
        help="Students trained side by side.",
        default_text="one per core, or per GPU",
        minimum=1,
        maximum=MOST_THREADS,
    )
    data_parallel: bool = setting(
        False,
        group=Group.MACHINE,
        help="Under torchrun, train one student at a time with all processes, not one per process.",
    )

    def __post_init__(self) -> None:
        check_bounds(self)
