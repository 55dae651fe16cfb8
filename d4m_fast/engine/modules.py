"""The four networks as modules with flat, named tensors, which PyTorch runs and exports alike.

The modules are diffusers' and transformers' own; this file loads them and hides their calling conventions.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from d4m_fast.engine.libraries import refusing
from d4m_fast.engine.signature import Component
from d4m_fast.engine.unet import DiffusersUnet, UnetModule, unproven
from d4m_fast.engine.weights import choose_weights

_ALWAYS = ("diffusers.schedulers", "transformers.models.clip.tokenization_clip")
_NETWORKS = (
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.clip.modeling_clip",
)


def import_libraries(*, networks: bool) -> None:
    """Import as much of diffusers and transformers as is needed: schedules, tokenizer and, if asked for, the networks.

    All at once and early, so that their seconds are not counted among those of the stage that first uses them.
    """
    for name in (*_ALWAYS, *(_NETWORKS if networks else ())):
        importlib.import_module(name)


class TextEncoderModule(torch.nn.Module):
    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        return (self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state,)


class VaeEncoderModule(torch.nn.Module):
    """The VAE's encoder; mean and log-variance are returned unclipped."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        del vae.decoder  # half of the weights, never needed here
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.mean, posterior.logvar


class VaeDecoderModule(torch.nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        del vae.encoder  # as the decoder above
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.vae.decode(latents).sample,)


def load_module(path: Path, component: Component, dtype: torch.dtype, *, reference: bool = False) -> torch.nn.Module:
    """Load one network of a checked model directory on the CPU, for inference.

    Its arguments and its results are the tensors of `SIGNATURES[component]`, in that order.

    Args:
        reference: run diffusers' own forward pass, even where ours is proven to equal it, to compare others with it.

    Raises:
        ModelError: its weights do not fit its config.
    """
    with refusing(f"{path}: {component} cannot be loaded"):
        if component == "text_encoder":
            from transformers.models.clip.modeling_clip import CLIPTextModel

            text_encoder = _from_pretrained(CLIPTextModel, path / "text_encoder", "model", dtype)
            module: torch.nn.Module = TextEncoderModule(text_encoder)
        elif component == "unet":
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

            unet = _from_pretrained(UNet2DConditionModel, path / "unet", "diffusion_pytorch_model", dtype)
            module = DiffusersUnet(unet) if reference or unproven(unet.config) else UnetModule(unet)
        else:
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

            vae = _from_pretrained(AutoencoderKL, path / "vae", "diffusion_pytorch_model", dtype)
            module = VaeEncoderModule(vae) if component == "vae_encoder" else VaeDecoderModule(vae)
        return module.eval().requires_grad_(False)


def _from_pretrained(loader: Any, folder: Path, stem: str, dtype: torch.dtype) -> Any:
    """Load a diffusers or transformers module from the weight files that `choose_weights` names."""
    module, report = loader.from_pretrained(
        folder,
        use_safetensors=True,
        variant=choose_weights(folder, stem).variant,
        dtype=dtype,
        low_cpu_mem_usage=False,
        ignore_mismatched_sizes=True,  # else transformers names them in a table of its own, and not in its error
        output_loading_info=True,
    )
    # The libraries would go on with random numbers in place of weights that are missing or of another size.
    missing, mismatched = report["missing_keys"], report["mismatched_keys"]
    if missing:
        raise ValueError(f"{len(missing)} weights missing, {min(missing)} among them")
    if mismatched:
        name, stored_shape, config_shape = min(mismatched)
        raise ValueError(
            f"{len(mismatched)} weights of another size than the config says, {name} among them:"
            f" {list(stored_shape)} in the file, {list(config_shape)} by config.json"
        )
    return module
