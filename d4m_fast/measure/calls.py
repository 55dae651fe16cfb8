"""The networks as single calls on random tensors, whose values change no time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch

from d4m_fast.engine.networks import Networks

NetworkStage = Literal["encode", "unet", "decode"]
NETWORK_OF: Mapping[NetworkStage, Literal["vae_encoder", "unet", "vae_decoder"]] = {
    "encode": "vae_encoder",
    "unet": "unet",
    "decode": "vae_decoder",
}
TIMESTEP = 501  # in the middle of a schedule of 1,000


def network_call(
    stage: NetworkStage,
    networks: Networks,
    sizes: Mapping[str, int],
    batch: int,
    *,
    guidance: float,
    inputs_on: torch.device,
) -> Callable[[], torch.Tensor]:
    """Return one call of a stage's network on `batch` images; what it returns lies where the network runs.

    Args:
        sizes: lengths of the axes (`Model.sizes`).
        guidance: scale; above 1 the UNet has two rows per image.
        inputs_on: where its inputs lie; a call copies them to the network's device where that is another.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator).to(inputs_on)

    if stage == "encode":
        pixels = random(3, sizes["height"], sizes["width"]).clamp(-1, 1)  # the range of images
        return lambda: networks.vae_encoder(pixels)[0]
    latents = random(sizes["channels"], sizes["h"], sizes["w"])
    if stage == "decode":
        return lambda: networks.vae_decoder(latents)
    halves = 2 if networks.unet.doubles(guidance) else 1
    states = torch.cat([random(sizes["tokens"], sizes["width_text"]) for _ in range(halves)])
    timestep = torch.tensor(TIMESTEP, device=inputs_on)
    return lambda: networks.unet(latents, timestep, states, guidance)
