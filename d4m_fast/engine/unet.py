"""Stable Diffusion 1.x's UNet with nothing computed twice.

diffusers' own layers in diffusers' own order, but: both halves of guidance are one network on the same noise until the
first cross-attention tells them apart, so up to there each sample is computed once; and all rows have one timestep, so
its embedding is computed once.
"""

from __future__ import annotations

from typing import Any

import torch

_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D", "CrossAttnUpBlock2D"}
_ABSENT = ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "dual_cross_attention")


class UnetModule(torch.nn.Module):
    """The UNet of `SIGNATURES["unet"]`, from diffusers' UNet2DConditionModel.

    Raises:
        ValueError: it has blocks or conditions that Stable Diffusion 1.x has not.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        _check(unet)
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        unet, halves = self.unet, _Halves(sample, hidden_states)
        time = unet.time_embedding(unet.get_time_embed(sample[:1], timestep))
        x = unet.conv_in(sample)
        skips = [(x, halves.apart)]
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
    """The two halves of guidance, which are one until the first cross-attention; `apart` from then on."""

    def __init__(self, sample: torch.Tensor, states: torch.Tensor) -> None:
        self.apart = False
        self._states = states
        row = torch.arange(states.shape[0], device=states.device)
        # By comparison, not modulo: what the exporter takes with a free batch.
        self._sample_of = torch.where(row < sample.shape[0], row, row - sample.shape[0])

    def rows(self, x: torch.Tensor, apart: bool) -> torch.Tensor:
        return x if apart else x[self._sample_of]

    def attend(self, attention: Any, x: torch.Tensor) -> torch.Tensor:
        """diffusers' Transformer2DModel, or nothing where a layer has none."""
        if attention is None:
            return x
        height, width = x.shape[2:]
        tokens, inner = attention._operate_on_continuous_inputs(x)
        for block in attention.transformer_blocks:
            tokens = block.attn1(block.norm1(tokens)) + tokens
            tokens, x = self.rows(tokens, self.apart), self.rows(x, self.apart)
            self.apart = True
            tokens = block.attn2(block.norm2(tokens), encoder_hidden_states=self._states) + tokens
            tokens = block.ff(block.norm3(tokens)) + tokens
        result: torch.Tensor = attention._get_output_for_continuous_inputs(
            tokens, x, tokens.shape[0], height, width, inner
        )
        return result


def _check(unet: Any) -> None:
    blocks = {type(block).__name__ for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)}
    foreign = sorted(blocks - _BLOCKS) + [name for name in _ABSENT if unet.config.get(name)]
    if foreign:
        raise ValueError(f"not a Stable Diffusion 1.x UNet: {', '.join(foreign)}")


def _layers(block: Any) -> list[tuple[Any, Any]]:
    """Its residual layers, each with the attention after it; None where the block has none."""
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return list(zip(block.resnets, attentions, strict=True))
