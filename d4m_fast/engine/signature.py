"""Names and axes of the four networks' tensors, in the one table that export and runtimes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

Component = Literal["text_encoder", "vae_encoder", "unet", "vae_decoder"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
BATCH, SAMPLES = "batch", "samples"


@dataclass(frozen=True, slots=True)
class Signature:
    """Names of a network's inputs and outputs and of their axes, of which `batch` and `samples` vary.

    `batch` counts the rows that are computed. `samples` is the UNet's: as many as rows, or half as many. In the latter
    case the second half of the rows is for the same samples again, because both halves of guidance see the same noise.

    Floating-point tensors have the runtime's dtype, except the timestep. Integers are int64.

    Attributes:
        inputs, outputs: axes of each tensor, by name.
        integers: names of the inputs of integers.
        optional: inputs of some models only, which follow the others; exported networks take none of them.
    """

    inputs: MappingProxyType[str, tuple[str, ...]]
    outputs: MappingProxyType[str, tuple[str, ...]]
    integers: frozenset[str]
    optional: MappingProxyType[str, tuple[str, ...]]

    def axes_of(self, inputs: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
        """Return the axes of the inputs that a call has, by name, in the network's order."""
        return {**self.inputs, **{name: axes for name, axes in self.optional.items() if name in inputs}}

    @property
    def batched(self) -> tuple[str, ...]:
        """The inputs with an axis that varies."""
        return tuple(name for name, axes in self.inputs.items() if BATCH in axes or SAMPLES in axes)

    @property
    def halves(self) -> int:
        """Most rows per sample: 2 for the UNet, which guidance calls for, and 1 for the others."""
        return 2 if any(SAMPLES in axes for axes in self.inputs.values()) else 1

    def rows(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Return the number of rows of a call."""
        return next(inputs[name].shape[0] for name, axes in self.inputs.items() if BATCH in axes)

    def samples(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Return the number of samples: that of the rows, or half of it in a UNet's call with guidance."""
        return inputs[self.batched[0]].shape[0]

    def shape(self, name: str, sizes: Mapping[str, int], batch: int, *, samples: int | None = None) -> tuple[int, ...]:
        """Return the shape of an input or output.

        Args:
            sizes: length of each axis that does not vary (`Model.sizes`).
            batch: number of rows.
            samples: None for as many as rows.
        """
        axes = self.inputs[name] if name in self.inputs else self.outputs[name]
        lengths = {**sizes, BATCH: batch, SAMPLES: batch if samples is None else samples}
        return tuple(lengths[axis] for axis in axes)


def _signature(
    inputs: dict[str, tuple[str, ...]],
    outputs: dict[str, tuple[str, ...]],
    integers: tuple[str, ...] = (),
    optional: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Signature:
    return Signature(
        MappingProxyType(inputs), MappingProxyType(outputs), frozenset(integers), MappingProxyType(dict(optional))
    )


_LATENT = (BATCH, "channels", "h", "w")
_PIXELS = (BATCH, "3", "height", "width")
_STATES = (BATCH, "tokens", "width_text")

SIGNATURES: MappingProxyType[Component, Signature] = MappingProxyType(
    {
        "text_encoder": _signature(
            {"input_ids": (BATCH, "tokens")},
            {"hidden_states": _STATES},
            ("input_ids",),
            {"attention_mask": (BATCH, "tokens")},
        ),
        "vae_encoder": _signature({"pixels": _PIXELS}, {"mean": _LATENT, "logvar": _LATENT}),
        "unet": _signature(
            {"sample": (SAMPLES, *_LATENT[1:]), "timestep": (), "hidden_states": _STATES},
            {"noise": _LATENT},
            ("timestep",),
            {"timestep_cond": (BATCH, "guidance_embedding")},
        ),
        "vae_decoder": _signature({"latents": _LATENT}, {"pixels": _PIXELS}),
    }
)
