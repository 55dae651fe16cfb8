"""The one seam round everything that computes: a dictionary of tensors in, a dictionary of tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch


class Runtime(Protocol):
    """One network, opened and ready.

    Names and axes are those of `signature.SIGNATURES`. Tensors live on `device`; floating-point ones have `dtype`.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]: ...
