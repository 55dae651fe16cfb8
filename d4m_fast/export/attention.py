"""Attention as ONNX Runtime's own operator, which never writes the matrix of scores and needs no transposed heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from onnx.defs import OpSchema

DOMAIN, OPERATOR = "com.microsoft", "MultiHeadAttention"


class OrtAttention:
    """A processor for diffusers' `Attention`, while it is exported.

    See ONNX Runtime's documentation of contrib operators: query (N, S, C), key and value (N, L, C), heads side by side.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,  # diffusers gives it by name; Stable Diffusion has none
    ) -> torch.Tensor:
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(states), attn.to_v(states)
        mixed = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OPERATOR}",
            (query, key, value),
            {"num_heads": attn.heads, "scale": float(attn.scale)},
            dtype=query.dtype,
            shape=query.shape,
            version=1,
        )
        projected: torch.Tensor = attn.to_out[0](mixed)  # to_out[1] is dropout
        return projected


def is_plain(attn: Any) -> bool:
    """Whether a layer does nothing but what `OrtAttention` does, as Stable Diffusion's UNets have it."""
    norms = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    return not any(norms) and not attn.residual_connection and attn.rescale_output_factor == 1


def use_ort_attention(unet: Any) -> None:
    """Export diffusers' UNet with ONNX Runtime's own attention.

    Raises:
        ValueError: one of its attentions does something else.
    """
    for name, module in unet.named_modules():
        if name.endswith(("attn1", "attn2")) and not is_plain(module):
            raise ValueError("its attention normalises, rescales or adds, which Stable Diffusion 1.x's does not")
    unet.set_attn_processor(OrtAttention())


def ort_attention_schema() -> OpSchema:
    """Return the types of the operator, which onnx does not know: all of its tensors have one type."""
    from onnx import defs

    formals = [defs.OpSchema.FormalParameter(name, "T") for name in ("query", "key", "value", "output")]
    return defs.OpSchema(
        OPERATOR,
        DOMAIN,
        1,
        inputs=formals[:3],
        outputs=formals[3:],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
    )
