"""Parameters and operations of a model, counted by tracing its networks on PyTorch's `meta` device: no weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from d4m_fast.engine.compatibility import ModelConfigs, read_configs
from d4m_fast.engine.model import locate
from d4m_fast.errors import ModelError

ROUGHLY = 8  # tracing finds 0.1 to 0.8 in networks of this family


@dataclass(frozen=True, slots=True)
class Traced:
    """Counts of a network's forward pass on one sample.

    Attributes:
        parameters: their number.
        flops: of one forward pass, 2 per multiply-add, products of attention included, elementwise work not.
        activations: numbers alive at once, at most; attention scores, which fused kernels never store, left out.
        largest: elements of the largest tensor, those scores left out too.
    """

    parameters: int
    flops: int
    activations: int
    largest: int


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes of a model, and the counts of its networks.

    Attributes:
        resolution: side of the images, pixels.
        latent: (C, h, w).
        tokens, width_text: shape of a prompt's hidden states.
    """

    path: Path
    resolution: int
    latent: tuple[int, int, int]
    tokens: int
    width_text: int
    networks: dict[str, Traced]

    @property
    def parameters(self) -> int:
        return sum(network.parameters for network in self.networks.values())


class _Fused(TorchFunctionMode):
    """Attention as a fused kernel does it: the scores are never stored."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = {} if kwargs is None else kwargs
        if func is scaled_dot_product_attention:
            return _empty_attention(*args, **keywords)
        return func(*args, **keywords)


def _empty_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the numbers alive at once among the results of operations, parameters left out."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = {p.untyped_storage()._cdata for p in parameters}
        self._sizes: dict[int, int] = {}
        self.now = self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **({} if kwargs is None else kwargs))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() // tensor.element_size()
        if key in self._parameters:
            return
        self.largest = max(self.largest, size)
        if key not in self._sizes:
            self._sizes[key] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            # A storage is alive as long as any tensor that shares it.
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def trace_model(name: str, resolution: int | None = None, revision: str | None = None) -> Shapes:
    """Count a model from its configs; weights are not read.

    Args:
        name, revision: as `model_path` takes them.
        resolution: side of the images, pixels; None is what the model was trained on.

    Raises:
        ModelError: no such model, a part without config, or networks these configs do not describe.
    """
    path = model_path(name, revision)
    configs = read_configs(path)
    try:
        return _trace(configs, resolution)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: its configs describe no Stable Diffusion 1.x model that runs ({error})") from error


def most_activations(model: Path, resolution: int) -> int:
    """Return an upper bound of the numbers alive at once for one sample in any network, without tracing.

    As many as `ROUGHLY` feature maps of the widest layer would have at the size of the image.
    """
    configs = read_configs(model)
    widths = (*configs.unet["block_out_channels"], *configs.vae["block_out_channels"])
    return int(ROUGHLY * max(widths) * resolution**2)


def model_path(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model's configs: "sd15" is built in (shapes only), `locate` finds all others.

    Raises:
        ModelError: no such model.
    """
    if name == "sd15":
        return Path(str(resources.files("d4m_fast") / "assets" / "sd15"))
    return locate(name, revision, weights=False).path


def trace(module: nn.Module, call: Callable[[], object]) -> Traced:
    """Count one network on the `meta` device; `call` runs it on one sample."""
    with FlopCounterMode(display=False) as counter:
        call()
    # Memory in a pass of its own, where attention is fused: FLOP are counted from the products that this leaves out.
    with _Live(module.parameters()) as live, _Fused():
        call()
    parameters = sum(p.numel() for p in module.parameters())
    return Traced(parameters, int(counter.get_total_flops()), live.peak, live.largest)


def _trace(configs: ModelConfigs, resolution: int | None) -> Shapes:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    factor = configs.factor
    side = configs.resolution if resolution is None else resolution
    # Each level below the first halves the latent.
    step = factor * 2 ** (len(configs.unet["block_out_channels"]) - 1)
    if side % step:
        raise ModelError(f"--resolution must be a multiple of {step} with this model, not {side}")
    latent = (configs.vae["latent_channels"], side // factor, side // factor)
    tokens, width = configs.tokenizer["model_max_length"], configs.text_encoder["hidden_size"]
    with torch.device("meta"), torch.inference_mode():
        unet = UNet2DConditionModel.from_config(configs.unet)
        unet_inputs = torch.zeros(1, *latent), torch.tensor(1), torch.zeros(1, tokens, width)
        vae = AutoencoderKL.from_config(configs.vae)
        # Some VAEs have no convolution beside the latents.
        decoder = nn.ModuleList(module for module in (vae.decoder, vae.post_quant_conv) if module is not None)
        encoder = nn.ModuleList(module for module in (vae.encoder, vae.quant_conv) if module is not None)
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs.text_encoder))
        networks = {
            "unet": trace(unet, lambda: unet(*unet_inputs)),
            "vae_decoder": trace(decoder, lambda: vae.decode(torch.zeros(1, *latent))),
            "vae_encoder": trace(encoder, lambda: vae.encode(torch.zeros(1, 3, side, side)).latent_dist.mean),
            "text_encoder": trace(text_encoder, lambda: text_encoder(torch.zeros(1, tokens, dtype=torch.long))),
        }
    return Shapes(configs.path, side, latent, tokens, width, networks)
