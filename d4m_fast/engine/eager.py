"""The PyTorch runtime: diffusers' and transformers' own modules, unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from d4m_fast.allocator import keep_freed_memory
from d4m_fast.config import Precision
from d4m_fast.engine.signature import Component
from d4m_fast.errors import ModelError, PreflightError, UsageError

Tensors = dict[str, torch.Tensor]


class EagerRuntime:
    """One network of a model directory, in inference mode."""

    def __init__(self, forward: Callable[[Tensors], Tensors], device: torch.device, dtype: torch.dtype) -> None:
        self._forward = forward
        self.device = device
        self.dtype = dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        placed = {name: self._place(tensor) for name, tensor in inputs.items()}
        with torch.inference_mode():
            return self._forward(placed)

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=self.device, dtype=dtype)


def resolve_device(name: str) -> torch.device:
    """The device of `--device auto|cpu|cuda[:i]`.

    Raises:
        UsageError: not the name of a device.
        PreflightError: the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: not a device; use auto, cpu or cuda") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise PreflightError(f"--device {name}: this machine has no such device for PyTorch; use --device cpu")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """fp16 on GPUs, fp32 on CPUs, unless asked for otherwise.

    Raises:
        UsageError: fp16 on a CPU, where PyTorch's half precision is slower than fp32.
    """
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 is for GPUs; use --precision fp32 on the CPU")
    return torch.float16 if precision == "fp16" else torch.float32


def open_eager(path: Path, component: Component, device: torch.device, dtype: torch.dtype) -> EagerRuntime:
    """Load one network of a checked model directory.

    Raises:
        ModelError: its weights do not fit its config.
    """
    if device.type == "cpu":
        keep_freed_memory()
    try:
        forward = _LOADERS[component](path, device, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path}: {component} cannot be loaded ({str(error).splitlines()[0].strip()})") from error
    return EagerRuntime(forward, device, dtype)


def _load(loader: Any, folder: Path, stem: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A diffusers or transformers module from safetensors; half-precision files where there are no others."""
    full = (folder / f"{stem}.safetensors").is_file() or not any(folder.glob("*.fp16*"))
    with _quiet():
        module, found = loader.from_pretrained(
            folder,
            use_safetensors=True,
            variant=None if full else "fp16",
            dtype=dtype,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    if found["missing_keys"]:  # the libraries would go on with random numbers in their place
        raise ValueError(f"{len(found['missing_keys'])} weights missing, {min(found['missing_keys'])} among them")
    return module.to(device=device).eval()


def _fast_layout(module: Any, device: torch.device) -> Any:
    """Channels last for tensor cores. On CPUs the layout of diffusers: no slower there, and nearer to its bits."""
    return module if device.type == "cpu" else module.to(memory_format=torch.channels_last)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' loading bars and advice off the user's terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _text_encoder(path: Path, device: torch.device, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    from transformers.models.clip.modeling_clip import CLIPTextModel

    module = _load(CLIPTextModel, path / "text_encoder", "model", device, dtype)
    return lambda x: {"hidden_states": module(x["input_ids"]).last_hidden_state}


def _vae_encoder(path: Path, device: torch.device, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = _load(AutoencoderKL, path / "vae", "diffusion_pytorch_model", device, dtype)
    del vae.decoder  # half of the weights, which this runtime never needs
    vae.to(memory_format=torch.channels_last)  # faster on CPUs too, and nothing is compared with its bits

    def forward(x: Tensors) -> Tensors:
        posterior = vae.encode(x["pixels"]).latent_dist
        return {"mean": posterior.mean, "logvar": posterior.logvar}

    return forward


def _vae_decoder(path: Path, device: torch.device, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = _fast_layout(_load(AutoencoderKL, path / "vae", "diffusion_pytorch_model", device, dtype), device)
    del vae.encoder
    return lambda x: {"pixels": vae.decode(x["latents"]).sample}


def _unet(path: Path, device: torch.device, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = _load(UNet2DConditionModel, path / "unet", "diffusion_pytorch_model", device, dtype)
    unet = _fast_layout(unet, device)
    return lambda x: {"noise": unet(x["sample"], x["timestep"], x["hidden_states"]).sample}


_LOADERS: dict[Component, Callable[[Path, torch.device, torch.dtype], Callable[[Tensors], Tensors]]] = {
    "text_encoder": _text_encoder,
    "vae_encoder": _vae_encoder,
    "unet": _unet,
    "vae_decoder": _vae_decoder,
}
