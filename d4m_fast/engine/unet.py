"""Stable Diffusion's UNet with nothing computed twice, for configs on which that is proven, and diffusers' own forward.

Ours runs diffusers' own layers in diffusers' own order, with two differences. The two halves of guidance have the same
input until the first cross-attention, so up to there each sample is computed once. And all rows have one timestep, so
its embedding is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from d4m_fast.errors import TRIAL, ModelError, NonFiniteError

# Largest relative L2 between two forward passes of one UNet: 100 times what another order of sums changes in either
# dtype, and far below what a missing condition does.
EQUAL: Mapping[torch.dtype, float] = MappingProxyType({torch.float32: 1e-4, torch.float16: 2e-2})
_ANY = None
_BLOCKS = frozenset({"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"})
# Config keys of `UNet2DConditionModel` (diffusers 0.42.1) and the values that `UnetModule` equals diffusers with.
PROVEN: Mapping[str, tuple[object, ...] | None] = MappingProxyType(
    {
        # Sizes and choices inside diffusers' own layers, which `UnetModule` calls: any value.
        **dict.fromkeys(
            (
                *("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block"),
                *("flip_sin_to_cos", "freq_shift", "downsample_padding", "mid_block_scale_factor", "dropout", "act_fn"),
                *("norm_num_groups", "norm_eps", "cross_attention_dim", "transformer_layers_per_block"),
                *("attention_head_dim", "num_attention_heads", "use_linear_projection", "upcast_attention"),
                *("resnet_time_scale_shift", "time_embedding_dim", "conv_in_kernel", "conv_out_kernel"),
                *("addition_time_embed_dim", "addition_embed_type_num_heads", "projection_class_embeddings_input_dim"),
                *("down_block_types", "up_block_types"),  # their members are checked against `_BLOCKS`
            ),
            _ANY,
        ),
        # What changes the forward pass itself, which `UnetModule` writes anew: these values.
        "center_input_sample": (False,),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "only_cross_attention": (False,),
        "mid_block_only_cross_attention": (None, False),
        "reverse_transformer_layers_per_block": (None,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "dual_cross_attention": (False,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "class_embeddings_concat": (False,),
        "addition_embed_type": (None,),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1.0,),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "attention_type": ("default",),
        "cross_attention_norm": (None,),
    }
)


def unproven(config: Mapping[str, Any]) -> list[str]:
    """Return "key=value" for each entry of a UNet's config that `UnetModule` is not proven on, unknown keys too."""
    entries = list[str]()
    for key, value in config.items():
        values = PROVEN.get(key, ())
        if not key.startswith("_") and values is not _ANY and value not in values:
            entries.append(f"{key}={value}")
    blocks = {*config["down_block_types"], *config["up_block_types"]} - _BLOCKS
    return entries + sorted(map(str, blocks))


def require_equal(module: UnetModule, where: str) -> None:
    """Compare our forward pass with diffusers' own, on one small random sample with both halves of guidance.

    Args:
        where: begins the line of a refusal.

    Raises:
        ModelError: they differ by more than rounding.
    """
    unet = module.unet
    weight = unet.conv_in.weight
    generator, side = torch.Generator().manual_seed(0), 2 ** len(unet.config.block_out_channels)
    width = unet.config.cross_attention_dim
    sample = torch.randn(1, unet.config.in_channels, side, side, generator=generator).to(weight)
    states = torch.randn(2, 3, width if isinstance(width, int) else width[0], generator=generator).to(weight)
    timestep = torch.tensor(421, device=weight.device)  # an arbitrary noise level
    with torch.inference_mode():
        (ours,) = module(sample, timestep, states)
        (theirs,) = DiffusersUnet(unet)(sample, timestep, states)
    if not bool(theirs.isfinite().all()):
        raise NonFiniteError("unet", TRIAL)
    distance = float((ours - theirs).float().norm() / theirs.float().norm())
    if not distance <= EQUAL[weight.dtype]:
        raise ModelError(
            f"{where}: our forward pass is {distance:.2g} (relative L2) from diffusers' own; this config needs a"
            " condition that ours does not have: please report it"
        )


class DiffusersUnet(torch.nn.Module):
    """The UNet of `SIGNATURES["unet"]` by diffusers' own forward, which computes every row from start to end."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        rows = _sample_of_row(sample, hidden_states)
        noise = self.unet(
            sample[rows],
            timestep,
            encoder_hidden_states=hidden_states,
            timestep_cond=timestep_cond,
            return_dict=False,
        )[0]
        return (noise,)


def _sample_of_row(sample: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return the index of the sample that each row of the hidden states is for; the halves of guidance share them."""
    row = torch.arange(states.shape[0], device=states.device)
    # By comparison, because the exporter does not take a modulo with a free batch.
    return torch.where(row < sample.shape[0], row, row - sample.shape[0])


class UnetModule(torch.nn.Module):
    """The UNet of `SIGNATURES["unet"]`, made from a diffusers UNet2DConditionModel whose config is not `unproven`."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        unet, halves = self.unet, _Halves(sample, hidden_states)
        time = unet.time_embedding(unet.get_time_embed(sample[:1], timestep))
        x = unet.conv_in(sample)
        skips = [(x, halves.apart)]  # with each, whether it has a row for either half
        for block in unet.down_blocks:
            for resnet, attention in _layers(block):
                x = halves.attend(attention, resnet(x, time))
                skips.append((x, halves.apart))
            for sampler in block.downsamplers or ():
                x = sampler(x)
                skips.append((x, halves.apart))
        first, *resnets = unet.mid_block.resnets
        x = first(x, time)
        for attention, resnet in zip(unet.mid_block.attentions, resnets, strict=True):
            x = resnet(halves.attend(attention, x), time)
        for block in unet.up_blocks:
            for resnet, attention in _layers(block):
                x = torch.cat([x, halves.rows(*skips.pop())], dim=1)
                x = halves.attend(attention, resnet(x, time))
            for sampler in block.upsamplers or ():
                x = sampler(x)
        return (unet.conv_out(unet.conv_act(unet.conv_norm_out(x))),)


class _Halves:
    """State of the halves of guidance in a forward pass: one until the first cross-attention, `apart` from then on."""

    def __init__(self, sample: torch.Tensor, states: torch.Tensor) -> None:
        self.apart = False
        self._states = states
        self._sample_of = _sample_of_row(sample, states)

    def rows(self, x: torch.Tensor, apart: bool) -> torch.Tensor:
        """Return a row for either half."""
        return x if apart else x[self._sample_of]

    def attend(self, attention: Any, x: torch.Tensor) -> torch.Tensor:
        """Run diffusers' Transformer2DModel; None, of a layer without one, changes nothing."""
        if attention is None:
            return x
        height, width = x.shape[2:]
        tokens, inner = attention._operate_on_continuous_inputs(x)
        for block in attention.transformer_blocks:
            tokens = block.attn1(block.norm1(tokens)) + tokens
            # attn2 reads the prompts, so from here on the two halves differ.
            tokens, x = self.rows(tokens, self.apart), self.rows(x, self.apart)
            self.apart = True
            tokens = block.attn2(block.norm2(tokens), encoder_hidden_states=self._states) + tokens
            tokens = block.ff(block.norm3(tokens)) + tokens
        result: torch.Tensor = attention._get_output_for_continuous_inputs(
            tokens, x, tokens.shape[0], height, width, inner
        )
        return result


def _layers(block: Any) -> list[tuple[Any, Any]]:
    """Return a block's residual layers, each with the attention after it, or None in a block that has none."""
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return list(zip(block.resnets, attentions, strict=True))
