"""The named recipes by which distilled sets are scored. A published protocol is never edited: a new one gets a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Protocol:
    """Recipe by which a student is trained; the accuracy reported is that of the last epoch on the full test set.

    AdamW with the rate going to zero along half a cosine, one value per step. Each batch is shifted and flipped;
    with soft labels it then goes through CutMix, and the teacher labels those very pixels in every step
    (training-time matching, as RDED, Sun et al., 2024).

    Attributes:
        image_size: pixels along each side.
        epochs: passes over the training images, the last batch of a pass included however small.
        lr: AdamW's rate in the first step.
        shift: largest translation along each axis, in pixels.
        temperature: divides the logits of teacher and student.
    """

    name: str
    image_size: int
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    shift: int
    temperature: float


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "small": Protocol(
            name="small",
            image_size=32,
            epochs=300,
            batch_size=50,
            lr=2e-3,
            weight_decay=0.01,
            shift=4,
            temperature=4.0,
        ),
    }
)
