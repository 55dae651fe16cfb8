"""The tensors of the four networks: the one table that runtimes and, later, exports share."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Component = Literal["text_encoder", "vae_encoder", "unet", "vae_decoder"]


@dataclass(frozen=True, slots=True)
class Signature:
    """Names of a network's inputs and outputs and of their axes; `batch` is the only axis that varies.

    Floating-point tensors have the runtime's dtype. Integers are int64.
    """

    inputs: MappingProxyType[str, tuple[str, ...]]
    outputs: MappingProxyType[str, tuple[str, ...]]


def _signature(inputs: dict[str, tuple[str, ...]], outputs: dict[str, tuple[str, ...]]) -> Signature:
    return Signature(MappingProxyType(inputs), MappingProxyType(outputs))


_LATENT = ("batch", "channels", "h", "w")
_PIXELS = ("batch", "3", "height", "width")
_STATES = ("batch", "tokens", "width_text")

SIGNATURES: MappingProxyType[Component, Signature] = MappingProxyType(
    {
        "text_encoder": _signature({"input_ids": ("batch", "tokens")}, {"hidden_states": _STATES}),
        "vae_encoder": _signature({"pixels": _PIXELS}, {"mean": _LATENT, "logvar": _LATENT}),
        "unet": _signature({"sample": _LATENT, "timestep": (), "hidden_states": _STATES}, {"noise": _LATENT}),
        "vae_decoder": _signature({"latents": _LATENT}, {"pixels": _PIXELS}),
    }
)
