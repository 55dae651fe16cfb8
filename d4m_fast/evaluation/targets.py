"""Targets of a batch, hard or soft, and the loss of a student's logits beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

ClassSelector = Callable[[torch.Tensor], torch.Tensor]


class Targets(Protocol):
    """Targets of a batch."""

    def loss(self, logits: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return the mean loss of some rows of the batch, whose logits these are."""
        ...


@dataclass(frozen=True, slots=True)
class HardTargets:
    """Positions of the classes, (N,), and of the images pasted in, which count by the share of their area."""

    labels: torch.Tensor
    pasted_labels: torch.Tensor | None = None
    pasted_share: float = 0.0

    def loss(self, logits: torch.Tensor, rows: slice) -> torch.Tensor:
        loss = F.cross_entropy(logits, self.labels[rows])
        if self.pasted_labels is None:
            return loss
        return torch.lerp(loss, F.cross_entropy(logits, self.pasted_labels[rows]), self.pasted_share)


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """A teacher's log-probabilities at a temperature, (N, classes)."""

    log_probabilities: torch.Tensor
    temperature: float
    scales_loss: bool

    def loss(self, logits: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return KL(teacher || student), times the temperature's square where it is scaled, mean over the rows."""
        prediction = F.log_softmax(logits / self.temperature, dim=1)
        # Logarithms on both sides: the smallest probabilities of a certain teacher would round to 0.
        divergence = F.kl_div(prediction, self.log_probabilities[rows], reduction="batchmean", log_target=True)
        return divergence * self.temperature**2 if self.scales_loss else divergence


def log_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return a teacher's log-probabilities at a temperature, (N, classes) float32."""
    return F.log_softmax(logits.float() / temperature, dim=1)


def class_selector(classes: tuple[int, ...], outputs: int) -> ClassSelector:
    """Return the function that cuts logits (N, outputs) to the classes evaluated."""
    # A slice of all columns is a view; indexing copies the logits, in training twice per step.
    if classes == tuple(range(outputs)):
        return lambda logits: logits[:, :outputs]
    columns = torch.tensor(classes)
    return lambda logits: logits[:, columns.to(logits.device)]
