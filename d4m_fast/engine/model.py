"""A model directory of the shape of Stable Diffusion 1.x: its parts, its hash and its geometry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from d4m_fast.engine.compatibility import CONFIGS, INDEX, read_configs, require_vocabulary
from d4m_fast.engine.hub import fetch, is_hub_id
from d4m_fast.engine.weights import WEIGHTS, WeightFiles, choose_weights
from d4m_fast.errors import ModelError, require
from d4m_fast.sources.dataset import BUNDLED
from d4m_fast.storage.files import open_regular


@dataclass(frozen=True, slots=True)
class Model:
    """A checked model directory.

    Attributes:
        name: "bundled", the absolute directory, or the hub id.
        revision: the commit, of a model from the hub.
        factor: pixels per latent cell along each side.
        channels: latent channels.
        resolution: side of the images the model was trained on, in pixels.
        train_timesteps: length of the noise schedule it was trained with.
        tokens, width_text: shape of a prompt's hidden states.
        vocabulary: number of tokens the text encoder knows.
        unet_factor: how often the UNet halves a latent, as a factor.
        embeds_guidance: whether the UNet is told the guidance scale, and then never run on both halves of guidance.
        export_hindrance: why the model cannot be exported; None if it can.
        weights: the files that each part is loaded from.
    """

    name: str
    revision: str | None
    path: Path
    sha256: str
    factor: int
    channels: int
    resolution: int
    train_timesteps: int
    tokens: int
    width_text: int
    vocabulary: int
    unet_factor: int
    embeds_guidance: bool
    export_hindrance: str | None
    weights: tuple[WeightFiles, ...]

    @property
    def weights_line(self) -> str:
        """The log's line on the weight files; empty where nothing but full precision is there."""
        return "; ".join(weights.line for weights in self.weights if weights.line)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Return (C, h, w) of an image's latent.

        Raises:
            UsageError: the resolution does not fit the networks.
        """
        step = self.factor * self.unet_factor
        require(resolution % step == 0, f"--resolution must be a multiple of {step} with this model, not {resolution}")
        return self.channels, resolution // self.factor, resolution // self.factor

    def sizes(self, resolution: int) -> dict[str, int]:
        """Return the length of every axis of `signature.SIGNATURES` but the batch's."""
        channels, h, w = self.latent_shape(resolution)
        pixels = {"3": 3, "height": resolution, "width": resolution}
        return {"channels": channels, "h": h, "w": w, "tokens": self.tokens, "width_text": self.width_text, **pixels}


@dataclass(frozen=True, slots=True)
class Place:
    """Location of a model, and the name by which it is found again.

    Attributes:
        name: "bundled", the absolute directory, or the hub id.
        revision: the commit, of a model from the hub.
    """

    name: str
    revision: str | None
    path: Path


def locate(name: str, revision: str | None = None, *, weights: bool = True) -> Place:
    """Find a model: "bundled", a directory, or, if there is no such directory, a hub id.

    Args:
        revision: of a model from the hub; None is what its `main` is.
        weights: False where the configs are enough.

    Raises:
        ModelError: it is none of these, or cannot be downloaded.
        UsageError: a revision of something that has none.
    """
    if name != BUNDLED and not Path(name).is_dir() and is_hub_id(name):
        snapshot = fetch(name, revision, weights=weights)
        return Place(name, snapshot.commit, snapshot.path)
    require(revision is None, f"--revision is for models from the hub; {name} is none")
    if name == BUNDLED:
        return Place(name, None, Path(str(resources.files("d4m_fast") / "assets" / "model")))
    path = Path(name)
    if not path.is_dir():
        raise ModelError(f"{path}: no such model directory; give one in diffusers format, a hub id, or 'bundled'")
    return Place(str(path.resolve()), None, path)


def open_model(name: str, revision: str | None = None) -> Model:
    """Find a model and check that all of it is there, in safetensors.

    Args:
        name, revision: as `locate` takes them.

    Raises:
        ModelError: no such model, missing parts, weights that `choose_weights` refuses, or one that diffusers'
            image-to-image pipeline would not run as this engine does.
        UsageError: a revision of something that has none.
    """
    place = locate(name, revision)
    path = place.path
    configs = read_configs(path)
    require_vocabulary(path / "tokenizer")
    weights = tuple(choose_weights(path / component, stem) for component, stem in WEIGHTS.items())
    return Model(
        name=place.name,
        revision=place.revision,
        path=path,
        sha256=_sha256(path, weights),
        factor=configs.factor,
        channels=configs.vae["latent_channels"],
        resolution=configs.resolution,
        train_timesteps=configs.train_timesteps,
        tokens=configs.tokenizer["model_max_length"],
        width_text=configs.text_encoder["hidden_size"],
        vocabulary=configs.text_encoder["vocab_size"],
        unet_factor=2 ** (len(configs.unet["block_out_channels"]) - 1),
        embeds_guidance=configs.embeds_guidance,
        export_hindrance=configs.export_hindrance,
        weights=weights,
    )


def _sha256(path: Path, weights: Sequence[WeightFiles]) -> str:
    """Hash all that decides a model's results: its configs, its tokenizer, and the weights that are loaded."""
    files = {path / INDEX, *(path / component / name for component, name in CONFIGS.items())}
    # Any of the tokenizer's files may change the tokens.
    files.update(file for file in (path / "tokenizer").iterdir() if file.is_file())
    for of_component in weights:
        files.update(of_component.tensors)
    model_hash = hashlib.sha256()
    for file in sorted(files):
        with open_regular(file) as stream:
            file_hash = hashlib.file_digest(stream, "sha256").hexdigest()
        model_hash.update(f"{file.relative_to(path)}\0{file_hash}\n".encode())
    return model_hash.hexdigest()
