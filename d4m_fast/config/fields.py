"""Declaration of options: a dataclass's field holds its default, help, group and bounds."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from typing import Any

from d4m_fast.errors import UsageError

_KEY = "setting"
MOST_THREADS = 4096  # beyond it OpenMP ends the process, with a message of its own
MOST_IMAGES_PER_CALL = 99_999  # beyond it the libraries' sizes overflow
MOST_SECONDS = 86_400  # of one measurement: a day


class Group(enum.StrEnum):
    """Section of a command's help, in the order of the help."""

    EVERYDAY = "Options"
    DATA = "Data"
    MODEL = "Model"
    GENERATION = "Generation"
    CLUSTERING = "Clustering"
    STUDENTS = "Students"
    MEASUREMENT = "Measurement"
    MACHINE = "Machine"
    OUTPUT = "Output"


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """Everything about an option beside its name, its type and its default.

    Attributes:
        help: one sentence or phrase for `--help`.
        flag: its name on the command line where that is not the field's.
        default_text: what the help shows as the default, where the default itself does not say what happens.
        minimum, maximum: numbers that are admitted themselves.
        above, below: bounds that are not admitted themselves.
        parse: makes the value of a flag's text, for types that have no parser of their own.
    """

    help: str
    group: Group
    flag: str | None = None
    default_text: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    parse: Callable[[str], Any] | None = None

    def admits(self, value: float) -> bool:
        """Whether a number is finite and within the bounds; NaN is not."""
        return (
            # Of floats only: isfinite fails on integers that are too large for one.
            not (isinstance(value, float) and not math.isfinite(value))
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    @property
    def range(self) -> str:
        """Admitted numbers in words, "at least 1" for example; empty where all are."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum} to {self.maximum}"
        bounds = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        return " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)


def setting(default: Any = MISSING, *, factory: Callable[[], Any] | None = None, **described: Any) -> Any:
    """Declare an option as a dataclass's field.

    Args:
        default: its value where no flag is given.
        factory: makes the default when the config is built, for one that depends on the machine.
        described: the attributes of `Setting`.
    """
    metadata = {_KEY: Setting(**described)}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def same_as(config: type, name: str, *, default: Any = MISSING, factory: Any = None, **changed: Any) -> Any:
    """Declare an option as another config has it, but for what is named."""
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    attributes = {slot: getattr(field.metadata[_KEY], slot) for slot in Setting.__slots__}
    return setting(field.default if default is MISSING else default, factory=factory, **{**attributes, **changed})


def settings_of(config: Any) -> Iterator[tuple[dataclasses.Field[Any], Setting]]:
    """Yield the options among the fields of a config, or of its class, in their order."""
    for field in dataclasses.fields(config):
        if _KEY in field.metadata:
            yield field, field.metadata[_KEY]


def flag_of(field: dataclasses.Field[Any], described: Setting) -> str:
    """Return an option's name on the command line."""
    return f"--{field.name.replace('_', '-')}" if described.flag is None else described.flag


def check_bounds(config: Any) -> None:
    """Refuse a config one of whose numbers is out of its bounds.

    Raises:
        UsageError: names the flag, the bounds and the number.
    """
    for field, described in settings_of(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not described.admits(number):
                raise UsageError(f"{flag_of(field, described)} must be {described.range}, not {number}")


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas, each once, in their order."""
    names = dict.fromkeys(map(str.strip, text.split(",")))
    names.pop("", None)
    return tuple(names)


def available_threads() -> int:
    """Return how many threads PyTorch would take: one per core, unless the environment says otherwise."""
    import torch  # help and the checks of options do without it

    return torch.get_num_threads()
