"""The arms by name: what each is, and what it needs. Read without PyTorch, for `--help` and for the options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from d4m_fast.config.fields import parse_names
from d4m_fast.errors import DataError, UsageError
from d4m_fast.wording import did_you_mean

Need = Literal["records", "model", "teacher"]
_OWN_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Arm:
    """A kind of training set.

    Attributes:
        meaning: one line, for the report and for the help.
        needs: a run's own records, the model it was made with, or a teacher.
        is_drawn: whether it is drawn anew for every seed; the others are the same images for all.
        has_budget: whether it has as many images per class as the distilled set.
    """

    name: str
    meaning: str
    needs: frozenset[Need] = frozenset()
    is_drawn: bool = False
    has_budget: bool = True


def _needing(*needs: Need) -> frozenset[Need]:
    return frozenset(needs)


_LISTED = (
    Arm("distilled", "the set itself"),
    Arm("random", "real images, as many of each class, drawn anew for every seed", is_drawn=True),
    Arm("medoid", "the real image nearest to each prototype: what the clustering is worth", _needing("records")),
    Arm(
        "random-vae",
        "the random images through the run's VAE: what encoding and decoding lose",
        _needing("records", "model"),
        is_drawn=True,
    ),
    Arm("medoid-vae", "the medoids through the run's VAE", _needing("records", "model")),
    Arm("decoded", "the prototypes decoded, without diffusion", _needing("records", "model")),
    Arm("coreset", "real images chosen by the teacher's features (--coreset)", _needing("teacher")),
    Arm("whole", "all real images of these classes: the upper bound", has_budget=False),
)
ARMS: Mapping[str, Arm] = MappingProxyType({arm.name: arm for arm in _LISTED})


def parse_arms(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list, each once, in their order.

    Raises:
        UsageError: there is no arm of a name, or no name.
    """
    names = parse_names(text)
    for name in names:
        if name not in ARMS:
            question = did_you_mean(name, ARMS)
            raise UsageError(f"--arms: no arm {name!r}; there are {', '.join(ARMS)}, and --arm NAME=DIR{question}")
    if not names:
        raise UsageError(f"--arms: names no arm; there are {', '.join(ARMS)}")
    return names


def parse_folders(texts: Sequence[str]) -> dict[str, Path]:
    """Return the folders of several `--arm NAME=DIR`, by their names, in their order.

    Raises:
        UsageError: one is not of this form, or two have one name.
        DataError: there is no such directory.
    """
    folders = dict[str, Path]()
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not folder or not _OWN_NAME.fullmatch(name):
            raise UsageError(f"--arm {text}: write it as NAME=DIR, the name of letters, digits, '-', '_' and '.'")
        if name in ARMS or name in folders:
            raise UsageError(f"--arm {text}: there is an arm {name!r} already; choose another name")
        if not Path(folder).is_dir():
            raise DataError(f"--arm {text}: no such directory; it takes a directory of class folders")
        folders[name] = Path(folder)
    return folders
