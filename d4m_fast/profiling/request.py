"""What is to be profiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from d4m_fast.config import Engine, Precision, require

Stage = Literal["encode", "kmeans", "text", "unet", "decode", "write", "distill"]
STAGES: tuple[Stage, ...] = get_args(Stage)
NETWORK_STAGES: frozenset[Stage] = frozenset({"encode", "text", "unet", "decode"})
HOST = "host"  # in place of an engine, for what runs on none


@dataclass(frozen=True)
class ProfileRequest:
    """Options of `d4m-fast profile`.

    Attributes:
        model, data, precision, device, threads: as in `DistillConfig`.
        engines: each is profiled; "auto" is what `distill` would take.
        batches: images per call, of the stages that are called so.
        seconds, repeats: a stage is called until both are reached, the first call not counted.
        images: real images that are clustered, and that the whole run distills.
    """

    model: str = "bundled"
    data: str = "bundled"
    engines: tuple[Engine, ...] = ("auto",)
    precision: Precision = "auto"
    device: str = "auto"
    batches: tuple[int, ...] = (1, 8, 32)
    stages: tuple[Stage, ...] = STAGES
    seconds: float = 1.0
    repeats: int = 5
    images: int = 160
    threads: int | None = None

    def __post_init__(self) -> None:
        _known("--engine", self.engines, get_args(Engine))
        _known("--stages", self.stages, STAGES)
        require(len(self.batches) > 0, "--batches: none given; a list like 1,8,32")
        for batch in self.batches:
            require(batch >= 1, f"--batches must be at least 1, not {batch}")
        for name in ("repeats", "images", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name} must be at least 1, not {value}")
        require(0 <= self.seconds < float("inf"), f"--seconds must be at least 0, not {self.seconds}")

    def covers(self, stage: str, engine: str, batch: int) -> bool:
        """Whether a row with these was asked for; "auto" may be any engine, and some stages have their own batch."""
        of_engine = engine in ("host", *self.engines) or "auto" in self.engines
        of_batch = batch in self.batches or stage in ("kmeans", "distill")
        return stage in self.stages and of_engine and of_batch


def _known(option: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    wrong = next((name for name in given if name not in known), None)
    require(len(given) > 0, f"{option}: none given; there are {', '.join(known)}")
    require(wrong is None, f"{option}: {wrong!r} is none of {', '.join(known)}")
