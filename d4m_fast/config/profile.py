"""Options of `d4m-fast profile`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from d4m_fast.config.choices import Engine, Precision
from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.fields import (
    MOST_IMAGES_PER_CALL,
    MOST_SECONDS,
    Group,
    check_bounds,
    parse_names,
    same_as,
    setting,
)
from d4m_fast.errors import UsageError, require
from d4m_fast.wording import did_you_mean

Stage = Literal["encode", "kmeans", "text", "unet", "decode", "write", "distill"]
STAGES: tuple[Stage, ...] = get_args(Stage)
NETWORK_STAGES: frozenset[Stage] = frozenset({"encode", "text", "unet", "decode"})
HOST = "host"  # in place of an engine, for what runs on none


def parse_stages(text: str) -> tuple[str, ...]:
    """Return the stages of a list; "all" is every one."""
    return STAGES if text == "all" else parse_names(text)


def parse_batches(text: str) -> tuple[int, ...]:
    """Return the numbers of a list, ascending."""
    numerals = parse_names(text)
    for numeral in numerals:
        require(
            numeral.isdecimal() and len(numeral) <= len(str(MOST_IMAGES_PER_CALL)),
            f"--batches: {numeral!r} is not a whole number up to {MOST_IMAGES_PER_CALL}; a list like 1,8,32",
        )
    return tuple(sorted(set(map(int, numerals))))


@dataclass(frozen=True)
class ProfileConfig:
    """Options of `d4m-fast profile`.

    Attributes:
        engines: each is profiled; "auto" is what `distill` would take.
        batches: images per call, of the stages that are called so.
        seconds, repeats: a stage is called until both are reached, the first call not counted.
        images: real images that are clustered, and that the whole run distills.
    """

    model: str = same_as(DistillConfig, "model", help="'bundled', or a directory in diffusers format.")
    data: str = same_as(DistillConfig, "data", help="Real images: 'bundled', or a directory.")
    engines: tuple[Engine, ...] = setting(
        ("auto",),
        flag="--engine",
        group=Group.EVERYDAY,
        help="auto, torch, onnx, tensorrt; several with commas.",
        parse=parse_names,
    )
    precision: Precision = same_as(DistillConfig, "precision")
    device: str = same_as(DistillConfig, "device")
    batches: tuple[int, ...] = setting(
        (1, 8, 32), group=Group.EVERYDAY, help="Images per call.", minimum=1, parse=parse_batches
    )
    stages: tuple[Stage, ...] = setting(
        STAGES,
        group=Group.EVERYDAY,
        help=f"{', '.join(STAGES)}; several with commas.",
        default_text="all",
        parse=parse_stages,
    )
    seconds: float = setting(
        1.0,
        group=Group.MEASUREMENT,
        help="Time at least, per stage, engine and batch.",
        minimum=0,
        maximum=MOST_SECONDS,
    )
    repeats: int = setting(
        5,
        group=Group.MEASUREMENT,
        help="Calls at least, after one that is not counted.",
        minimum=1,
        maximum=1_000_000,
    )
    images: int = setting(
        160,
        group=Group.MEASUREMENT,
        help="Real images to cluster, and to distill end to end.",
        minimum=1,
        maximum=10_000_000,
    )
    threads: int | None = same_as(DistillConfig, "threads")

    def __post_init__(self) -> None:
        _require_known("--engine", self.engines, get_args(Engine))
        _require_known("--stages", self.stages, STAGES)
        require(len(self.batches) > 0, "--batches: none given; a list like 1,8,32")
        check_bounds(self)

    def covers(self, stage: str, engine: str, batch: int) -> bool:
        """Whether a row with these was asked for; "auto" may be any engine, and some stages have their own batch."""
        of_engine = engine in (HOST, *self.engines) or "auto" in self.engines
        of_batch = batch in self.batches or stage in ("kmeans", "distill")
        return stage in self.stages and of_engine and of_batch


def _require_known(flag: str, names: tuple[str, ...], choices: tuple[str, ...]) -> None:
    require(len(names) > 0, f"{flag}: none given; there are {', '.join(choices)}")
    for name in names:
        if name not in choices:
            raise UsageError(f"{flag}: {name!r} is none of {', '.join(choices)}{did_you_mean(name, choices)}")
