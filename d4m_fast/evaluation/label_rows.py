"""Stored labels of one epoch: row by row, and as the bytes of a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from d4m_fast.evaluation.targets import log_probabilities
from d4m_fast.evaluation.views import Views


@dataclass(frozen=True, slots=True)
class LabelRows:
    """Rows of one stored epoch, one per image.

    Attributes:
        order: (N,) rows in the order in which the teacher saw them.
        partners: (N,) row of the image pasted into each; itself where the batch was not mixed.
        mix_boxes: (N, 4) top, bottom, left, right; empty where it was not.
        logits: (N, classes) float16 (float32 where others stored them so), or (N, k) with `indices` (N, k) and
            `rests` (N,).
    """

    order: torch.Tensor
    views: Views
    partners: torch.Tensor
    mix_boxes: torch.Tensor
    logits: torch.Tensor
    indices: torch.Tensor | None
    rests: torch.Tensor | None

    def log_probabilities(self, rows: torch.Tensor, classes: int, temperature: float) -> torch.Tensor:
        """Return the teacher's log-probabilities of rows, (len(rows), classes) float32.

        The mass of the logits that were not kept is spread evenly over their classes.
        """
        logits = self.logits[rows].float()
        if self.indices is None or self.rests is None:
            return log_probabilities(logits, temperature)
        left_out = classes - logits.shape[1]
        # Divided by the temperature below, it is the logarithm of an equal share of the rest.
        share = self.rests[rows].float() - temperature * float(np.log(left_out))
        dense = share.unsqueeze(1).expand(-1, classes).clone()
        return log_probabilities(dense.scatter_(1, self.indices[rows].long(), logits), temperature)


def views_at(views: Views, rows: torch.Tensor) -> Views:
    """Return the views of some rows."""
    return Views(
        None if views.swaps is None else views.swaps[rows],
        None if views.boxes is None else views.boxes[rows],
        None if views.offsets is None else views.offsets[:, rows],
        views.flips[rows],
    )


def packed(rows: LabelRows) -> bytes:
    """Return an epoch as a safetensors file."""
    from safetensors.torch import save

    side, views = torch.int16, rows.views
    tensors = {
        "order": rows.order.int(),
        "flips": views.flips,
        "swaps": views.swaps,
        "boxes": None if views.boxes is None else views.boxes.to(side),
        "offsets": None if views.offsets is None else views.offsets.to(side),
        "partners": rows.partners.int(),
        "mix_boxes": rows.mix_boxes.to(side),
        "logits": rows.logits,
        "indices": rows.indices,
        "rests": rows.rests,
    }
    return save({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None})


def unpacked(data: bytes) -> LabelRows:
    """Return what `packed` made bytes of."""
    from safetensors.torch import load

    tensors = load(data)
    boxes, offsets = tensors.get("boxes"), tensors.get("offsets")
    views = Views(
        tensors.get("swaps"),
        None if boxes is None else boxes.long(),
        None if offsets is None else offsets.long(),
        tensors["flips"],
    )
    return LabelRows(
        tensors["order"].long(),
        views,
        tensors["partners"].long(),
        tensors["mix_boxes"].long(),
        tensors["logits"],
        tensors.get("indices"),
        tensors.get("rests"),
    )
