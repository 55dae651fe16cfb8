"""The four networks as typed calls, the same on every engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from d4m_fast.engine.artifacts import Artifact
from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.engines import ENGINES
from d4m_fast.engine.finite import FiniteCheck
from d4m_fast.engine.guidance import guide
from d4m_fast.engine.libraries import refusing
from d4m_fast.engine.model import Model
from d4m_fast.engine.runtime import OpenRuntime, Runtime, Tensors
from d4m_fast.engine.signature import Component
from d4m_fast.storage.state import read_json

Guard = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class TextEncoder:
    """The text encoder: prompts to hidden states.

    Attributes:
        tokenizer: transformers' CLIP tokenizer of the model.
        masked: whether attention leaves out the padding, which a config asks for by `use_attention_mask`.
    """

    runtime: Runtime
    tokenizer: Any
    masked: bool = False

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return (N, tokens, width), of prompts padded and cut to the tokenizer's length as diffusers' pipelines do."""
        tokens = self._tokenize(prompts)
        inputs = {"input_ids": tokens.input_ids}
        if self.masked:
            inputs["attention_mask"] = tokens.attention_mask
        return self.runtime(inputs)["hidden_states"]

    def token_ids(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return (N, tokens) int64, padded and cut."""
        ids: torch.Tensor = self._tokenize(prompts).input_ids
        return ids

    @property
    def most_tokens(self) -> int:
        """Most tokens of a prompt that is not cut, its start and end included."""
        length: int = self.tokenizer.model_max_length
        return length

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each uncut prompt, its start and end included."""
        if not prompts:
            return []
        return list(map(len, self.tokenizer(list(prompts), verbose=False).input_ids))

    def _tokenize(self, prompts: Sequence[str]) -> Any:
        length = self.tokenizer.model_max_length
        return self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )


@dataclass(frozen=True)
class VaeEncoder:
    """The VAE's encoder: pixels to the posterior of scaled latents."""

    runtime: Runtime
    scaling_factor: float

    def guarded(self, guard: Guard) -> VaeEncoder:
        """Return the same network, each call of which is made inside a `guard`."""
        return replace(self, runtime=_Guarded(self.runtime, guard))

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation, both (N, C, h, w), of RGB pixels (N, 3, H, W) in [-1, 1]."""
        posterior = self.runtime({"pixels": pixels})
        return posterior["mean"] * self.scaling_factor, torch.exp(0.5 * posterior["logvar"]) * self.scaling_factor


@dataclass(frozen=True)
class VaeDecoder:
    """The VAE's decoder: scaled latents to pixels."""

    runtime: Runtime
    scaling_factor: float

    def __call__(self, latents: torch.Tensor, check: FiniteCheck | None = None) -> torch.Tensor:
        """Return RGB (N, 3, H, W) clipped to [0, 1]; `check` sees it before clipping, which would hide infinity."""
        pixels = self.runtime({"latents": latents / self.scaling_factor})["pixels"]
        if check is not None:
            check.add("vae_decoder", pixels)
        return (pixels / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Unet:
    """The UNet: the noise in a sample, with or without classifier-free guidance.

    Attributes:
        embedding: width of the guidance scale's embedding, for a distilled UNet that is told the scale instead of
            being run on both halves (`time_cond_proj_dim`); None for all others.
    """

    runtime: Runtime
    embedding: int | None = None

    def doubles(self, guidance: float) -> bool:
        """Return whether a call at this scale takes two rows for each sample, the negative prompts' first."""
        return guidance > 1 and self.embedding is None

    def __call__(
        self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor, guidance: float
    ) -> torch.Tensor:
        """Return the predicted noise in the shape of `sample` (B, C, h, w), float32 whatever the runtime's dtype.

        Where guidance doubles the batch, `states` are (2B, tokens, width), the negative prompts' first, and both halves
        go through the network as one batch.
        """
        inputs = {"sample": sample, "timestep": timestep, "hidden_states": states}
        if self.embedding is not None:
            inputs["timestep_cond"] = _guidance_embedding(guidance, len(sample), self.embedding)
        noise = self.runtime(inputs)["noise"].float()
        return guide(noise, guidance) if self.doubles(guidance) else noise


def _guidance_embedding(guidance: float, rows: int, dimensions: int) -> torch.Tensor:
    """Return diffusers' embedding of the guidance scale, (rows, dimensions)."""
    from diffusers import StableDiffusionImg2ImgPipeline

    scales = torch.tensor(guidance - 1).repeat(rows)  # less one, as diffusers' pipeline gives it
    # The method reads nothing of the pipeline, so None can stand for it.
    embedding: torch.Tensor = StableDiffusionImg2ImgPipeline.get_guidance_scale_embedding(None, scales, dimensions)
    return embedding


class _Guarded:
    """A runtime whose calls are made inside a context."""

    def __init__(self, runtime: Runtime, guard: Guard) -> None:
        self._runtime, self._guard = runtime, guard
        self.device, self.dtype = runtime.device, runtime.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        with self._guard():
            return self._runtime(inputs)


class Networks:
    """The networks of one model, each opened when first used.

    Raises (on use):
        ModelError: a part cannot be loaded.
    """

    def __init__(self, path: Path, open_runtime: OpenRuntime) -> None:
        self._path = path
        self._open = cache(open_runtime)  # each network is opened once, whoever asks for it

    def runtime(self, component: Component) -> Runtime:
        return self._open(component)

    def with_runtimes(self, open_runtime: OpenRuntime) -> Networks:
        """Return the same model, its tokenizer and its factors, on other runtimes."""
        return Networks(self._path, open_runtime)

    def guarded(self, guard: Guard) -> Networks:
        """Return the same networks, opened once for both, each call of which is made inside a `guard`."""
        networks = Networks(self._path, lambda component: _Guarded(self._open(component), guard))
        # Assigned as the cached property would: the tokenizer, which takes long to load, is not loaded twice.
        networks.__dict__["text_encoder"] = replace(self.text_encoder, runtime=networks.runtime("text_encoder"))
        return networks

    @cached_property
    def text_encoder(self) -> TextEncoder:
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        masked = bool(self._config("text_encoder").get("use_attention_mask", False))
        runtime, folder = self._open("text_encoder"), self._path / "tokenizer"
        with refusing(f"{folder}: tokenizer cannot be loaded"):
            tokenizer = CLIPTokenizer.from_pretrained(folder)
        return TextEncoder(runtime, tokenizer, masked)

    @cached_property
    def vae_encoder(self) -> VaeEncoder:
        return VaeEncoder(self._open("vae_encoder"), self._scaling_factor)

    @cached_property
    def vae_decoder(self) -> VaeDecoder:
        return VaeDecoder(self._open("vae_decoder"), self._scaling_factor)

    @cached_property
    def unet(self) -> Unet:
        return Unet(self._open("unet"), self._config("unet").get("time_cond_proj_dim"))

    @cached_property
    def _scaling_factor(self) -> float:
        factor: float = self._config("vae").get("scaling_factor", 0.18215)  # diffusers' default
        return factor

    def _config(self, folder: str) -> dict[str, Any]:
        config: dict[str, Any] = read_json(self._path / folder / "config.json")
        return config


def open_networks(
    path: Path, device: torch.device, dtype: torch.dtype, *, compiled: bool = False, reference: bool = False
) -> Networks:
    """Return the networks of a checked model directory on the PyTorch runtime.

    Args:
        compiled: run them through torch.compile, all but the text encoder, which is called once for each prompt.
        reference: run diffusers' own forward pass of each, to compare others with it.
    """

    def open_runtime(component: Component) -> Runtime:
        worth_compiling = component != "text_encoder"
        return open_eager(path, component, device, dtype, compiled=compiled and worth_compiling, reference=reference)

    return Networks(path, open_runtime)


def open_exported(model: Model, resolution: int, artifact: Artifact, device: torch.device) -> Networks:
    """Return the networks of a checked model directory on the engine that an exported set is for."""
    opener = ENGINES[artifact.engine].opener
    assert opener is not None, artifact.engine
    return Networks(model.path, opener(artifact, model.sizes(resolution), device))
