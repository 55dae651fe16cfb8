"""Features of images, from any classifier: what its last linear layer sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from d4m_fast.errors import ModelError

Features = Callable[[torch.Tensor], torch.Tensor]
_BATCH = 256  # images at a time, so that their activations stay small


def features_of(classifier: nn.Module, device: torch.device) -> Features:
    """Return a function of images (N, 3, S, S) uint8 to the inputs of the classifier's last linear layer.

    They are (N, D) float32 on the host. Coresets are chosen by these (Sener & Savarese, 2018; iCaRL).

    Args:
        classifier: on the device, in evaluation mode; takes RGB in [0, 1].

    Raises:
        ModelError: it has no linear layer; from the function, its features are not finite.
    """
    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ModelError("the teacher has no linear layer, whose inputs are its features; leave the arm coreset out")
    inputs = list[torch.Tensor]()

    def record(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        # Of the layers that are called the last is the classifier's head, whatever its name; others may come first.
        inputs[:] = arguments[:1]

    @torch.inference_mode()
    def features(images: torch.Tensor) -> torch.Tensor:
        batches = []
        hooks = [layer.register_forward_pre_hook(record) for layer in layers]
        try:
            for batch in torch.split(images, _BATCH):
                classifier(batch.to(device).float() / 255)
                batches.append(inputs.pop().flatten(1).float().cpu())
        finally:
            for hook in hooks:
                hook.remove()
        rows = torch.cat(batches)
        if not rows.isfinite().all():
            raise ModelError("the teacher's features are NaN or infinite; a coreset cannot be chosen by them")
        return rows

    return features
