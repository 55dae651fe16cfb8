"""Records that a source of images consists of: classes and items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """A class: `id` is its index in the full set and the key everywhere; `prompt` is text for the model only."""

    id: int
    folder: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Item:
    """A real image: its class, its rank in the class's sorted file list, and where it comes from."""

    class_id: int
    rank: int
    origin: str


class Source(Protocol):
    """A labelled set of real images, read in its own order.

    `kind` says in a few words what the images are stored in. `fingerprint` changes when any image, label or class does.
    `read` returns an RGB image of 8 bits per channel, or raises `DataError` with the reason when the image is damaged;
    any thread may call it. `notes` says what was left out when it was listed, one line for each kind.
    """

    @property
    def kind(self) -> str: ...

    @property
    def classes(self) -> Sequence[ClassInfo]: ...

    @property
    def items(self) -> Sequence[Item]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def read(self, item: Item) -> Image.Image: ...


def by_class(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Return the items of each class, in the order of their ranks."""
    classes: dict[int, list[Item]] = {}
    for item in items:
        classes.setdefault(item.class_id, []).append(item)
    for members in classes.values():
        members.sort(key=lambda item: item.rank)
    return classes
