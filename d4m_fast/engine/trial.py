"""A tiny pass through all networks before the first image is encoded, which finds in a second what cannot work."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch

from d4m_fast.config.generation import PRESETS
from d4m_fast.engine.libraries import refusing
from d4m_fast.engine.memory import fitting
from d4m_fast.engine.model import Model
from d4m_fast.engine.networks import Networks, TextEncoder
from d4m_fast.engine.signature import SIGNATURES, Component
from d4m_fast.errors import TRIAL, ModelError, NonFiniteError

TIMESTEP = 1  # a noise level that every schedule has
GUIDANCE = PRESETS["reference"].guidance
PROMPTS = ("a photo of a cat", "a photo of a dog")


def try_networks(model: Model, networks: Networks, resolution: int, *, compiled: bool = False) -> None:
    """Open all networks and run each once, on random inputs of one image.

    Args:
        resolution: side of the image; exported networks take their own only.
        compiled: whether torch.compile would compile the networks for each shape; it does not for this pass.

    Raises:
        ModelError: a part cannot be loaded, does not run, or returns what does not fit the next one.
        NonFiniteError: it returns NaN or infinity.
        OutOfMemoryError: not even one image fits.
    """
    # Setting the stance imports torch.compile's whole front end.
    uncompiled = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with uncompiled, fitting("open"), torch.inference_mode():
        _Trial(model, networks, resolution).run()


def trial_resolution(model: Model) -> int:
    """Return the side of the smallest image that all levels of the networks can halve, and one level more."""
    return 2 * model.factor * model.unet_factor


class _Trial:
    """The way of one random image through the networks."""

    def __init__(self, model: Model, networks: Networks, resolution: int) -> None:
        self._model, self._networks = model, networks
        self._sizes = model.sizes(resolution)
        self._generator = torch.Generator().manual_seed(0)

    def run(self) -> None:
        networks = self._networks
        with self._trying("text_encoder"):
            _require_known_tokens(self._model, networks.text_encoder)
            states = networks.text_encoder(PROMPTS[:1])
            self._require("text_encoder", {"hidden_states": states})
        with self._trying("vae_encoder"):
            # Pixels lie between -1 and 1, as the values of tanh do.
            mean, deviation = networks.vae_encoder(self._random_input("vae_encoder", "pixels").tanh())
            self._require("vae_encoder", {"mean": mean, "logvar": deviation})
        with self._trying("unet"):
            rows = states.repeat(2 if networks.unet.doubles(GUIDANCE) else 1, 1, 1)
            noise = networks.unet(self._random_input("unet", "sample"), torch.tensor(TIMESTEP), rows, GUIDANCE)
            self._require("unet", {"noise": noise})
        with self._trying("vae_decoder"):
            pixels = networks.vae_decoder(self._random_input("vae_decoder", "latents"))
            self._require("vae_decoder", {"pixels": pixels})

    def _random_input(self, component: Component, name: str) -> torch.Tensor:
        shape = SIGNATURES[component].shape(name, self._sizes, 1)
        return torch.randn(shape, generator=self._generator).to(self._networks.runtime(component).device)

    def _require(self, component: Component, outputs: Mapping[str, torch.Tensor]) -> None:
        """Refuse outputs of another shape than the component's, and NaN and infinity in them."""
        for name, x in outputs.items():
            shape = SIGNATURES[component].shape(name, self._sizes, 1)
            if tuple(x.shape) != shape:
                raise ModelError(f"{self._model.path}: {component} returns {tuple(x.shape)}, expected was {shape}")
            if not bool(x.isfinite().all()):
                raise NonFiniteError(component, TRIAL)

    def _trying(self, component: Component) -> contextlib.AbstractContextManager[None]:
        return refusing(f"{self._model.path}: {component} does not run")


def _require_known_tokens(model: Model, encoder: TextEncoder) -> None:
    """Refuse a tokenizer that knows no words, or more of them than the text encoder, or one word as several."""
    if encoder.token_ids(PROMPTS[:1]).equal(encoder.token_ids(PROMPTS[1:])):
        raise ModelError(f"{model.path / 'tokenizer'}: the tokenizer tells no words apart; it lacks a vocabulary")
    vocabulary = encoder.tokenizer.get_vocab()
    last = max(vocabulary.values(), default=-1)
    if not 0 <= last < model.vocabulary:
        raise ModelError(
            f"{model.path / 'tokenizer'}: token ids go up to {last}, the text encoder has {model.vocabulary}"
            " (vocab_size in text_encoder/config.json)"
        )
    # diffusers' `maybe_convert_prompt` writes <word> as <word> <word>_1 where both are added tokens.
    added = encoder.tokenizer.get_added_vocab()
    several = [token for token in added if f"{token}_1" in added]
    if several:
        raise ModelError(
            f"{model.path / 'tokenizer'}: {several[0]} stands for several tokens (textual inversion), which diffusers"
            " puts in its place and this engine does not"
        )
