"""Settings of generation, and the presets that give them a value each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from d4m_fast.config.choices import PresetName, Scheduler
from d4m_fast.config.fields import Group, setting
from d4m_fast.errors import UsageError, require

UNPROVEN = "not yet proven on Stable Diffusion 1.5"
# No sign and no exponent: parts of a schedule are plain decimals from 0 to 1.
_INTERVAL = re.compile(r"([0-9]*\.?[0-9]+):([0-9]*\.?[0-9]+)")


def _of_preset(default: Any, **described: Any) -> Any:
    """Declare a setting that every preset has a value of its own for."""
    text = described.pop("default_text", default)
    return setting(default, group=Group.GENERATION, default_text=f"{text}, or the preset's", **described)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings of generation under one name, the reference's unless given; `docs/presets.md` has the evidence.

    Attributes:
        strength: how far up the noise schedule a prototype is sent, in (0, 1].
        guidance: classifier-free guidance scale; at most 1 runs the UNet once per step instead of twice.
        steps: length of the whole schedule; about `steps * strength` of it are run.
        scheduler: "model" is the model directory's own.
        guidance_interval: "LOW:HIGH", parts of the noise schedule; steps outside run without guidance.
    """

    # The defaults are those of D4M's official code.
    scheduler: Scheduler = _of_preset(
        "model", help="Sampler; 'model' is the model directory's own.", default_text="the model's own"
    )
    steps: int = _of_preset(50, help="Length of the whole schedule; steps x strength of it are run.", minimum=1)
    strength: float = _of_preset(0.7, help="How far up the noise schedule prototypes go.", above=0, maximum=1)
    guidance: float = _of_preset(8.0, help="Classifier-free guidance scale; 1 for none.", minimum=0)
    guidance_interval: str = _of_preset(
        "0:1", help="LOW:HIGH, parts of the noise schedule guided; outside, half the cost."
    )


SETTINGS = tuple(field.name for field in dataclasses.fields(Preset))
PRESETS: Mapping[PresetName, Preset] = MappingProxyType(
    {
        "reference": Preset(),
        "dpmpp": Preset(scheduler="dpmpp", steps=10),
        "unipc": Preset(scheduler="unipc", steps=8),
    }
)


class GenerationConfig:
    """Base of the configs with a preset and its settings; each declares the fields, in an order of its own."""

    preset: PresetName
    scheduler: Scheduler
    steps: int
    strength: float
    guidance: float
    guidance_interval: str

    @classmethod
    def of_preset(cls, preset: PresetName, **options: Any) -> Self:
        """Return the config with the preset's value for each setting that is missing in `options`, or None there."""
        explicit = {name: value for name, value in options.items() if value is not None}
        return cls(**{**dataclasses.asdict(PRESETS[preset]), **explicit, "preset": preset})

    @property
    def interval(self) -> tuple[float, float]:
        """`guidance_interval` as numbers."""
        match = _INTERVAL.fullmatch(self.guidance_interval)
        if match is None:
            raise UsageError(f"--guidance-interval {self.guidance_interval}: not LOW:HIGH, 0.2:0.6 for example")
        return float(match[1]), float(match[2])

    @property
    def unproven(self) -> bool:
        """Whether what saves UNet calls is set otherwise than in the official code."""
        saving = ("scheduler", "steps", "guidance_interval")
        return any(getattr(self, name) != getattr(Preset, name) for name in saving)

    def check_generation(self) -> None:
        """Refuse settings that make no step, or an interval that is none."""
        require(
            int(self.steps * self.strength) >= 1,
            f"--steps {self.steps} at --strength {self.strength} is no step at all",
        )
        low, high = self.interval
        require(0 <= low <= high <= 1, f"--guidance-interval {self.guidance_interval}: not 0 <= LOW <= HIGH <= 1")
