"""Requirements on a model directory with which diffusers' image-to-image pipeline makes the same images as this engine.

Everything here is read off the configs, before a weight is loaded; `engine.trial` then runs the networks once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4m_fast.errors import ModelError
from d4m_fast.storage.state import read_json

INDEX = "model_index.json"
CONFIGS: Mapping[str, str] = {
    "vae": "config.json",
    "unet": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}
# Those that diffusers' AutoPipelineForImage2Image opens as StableDiffusionImg2ImgPipeline, which ours is equal to.
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
CLASSES: Mapping[str, tuple[str, ...]] = {
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
# Either of these makes a whole tokenizer.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
LFS_POINTER = b"version https://git-lfs"
# Models for other tasks, known by the number of channels their UNet takes; a refusal says which it is.
_CHANNELS = {
    5: "a depth model, whose fifth channel is a depth map",
    7: "an upscaler, whose last three channels are a small image",
    8: "an editing model, whose last channels are the image to edit",
    9: "an inpainting model, whose last five channels are a mask and the masked image",
}
# Fields of a UNet's config and the values with which it needs nothing that the pipeline does not give it.
_PLAIN_CONDITIONS = {
    "addition_embed_type": (None, "text"),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim_type": (None, "text_proj"),
}
Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelConfigs:
    """The configs of a model directory, checked against one another.

    Attributes:
        path: of the directory.
    """

    path: Path
    vae: Config
    unet: Config
    text_encoder: Config
    scheduler: Config
    tokenizer: Config

    @property
    def factor(self) -> int:
        """Pixels per latent cell along each side."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def resolution(self) -> int:
        """Side in pixels of the images the model was trained on."""
        side = int(self.unet["sample_size"])
        # diffusers' pipeline corrects this in its constructor: configs of before 0.9 say 32 where the model was
        # trained on 64.
        version = re.match(r"(\d+)\.(\d+)(?:\.|$)", str(self.unet.get("_diffusers_version")))
        is_outdated = version is not None and (int(version[1]), int(version[2])) < (0, 9)
        return (64 if is_outdated and side < 64 else side) * self.factor

    @property
    def train_timesteps(self) -> int:
        """Length of the noise schedule the model was trained with."""
        return int(self.scheduler.get("num_train_timesteps", 1000))

    @property
    def embeds_guidance(self) -> bool:
        """Whether the UNet is told the guidance scale, and then never run on both halves of guidance."""
        return self.unet.get("time_cond_proj_dim") is not None

    @property
    def export_hindrance(self) -> str | None:
        """Why an exported set cannot take what these networks need beside the usual inputs; None if it can."""
        if self.embeds_guidance:
            return f"{self.path / 'unet' / 'config.json'}: time_cond_proj_dim, an embedding of the guidance scale"
        if self.text_encoder.get("use_attention_mask"):
            return f"{self.path / 'text_encoder' / 'config.json'}: use_attention_mask, a mask of the padding"
        return None


def read_configs(path: Path) -> ModelConfigs:
    """Read a model directory's configs and refuse what diffusers' pipeline would not run as this engine does.

    Raises:
        ModelError: a part is missing, is of another class, or does not fit the others; names the file and the field.
    """
    index = _read(path / INDEX) if _present(path / INDEX) else {}
    # First of all, because it says best what a foreign model is: XL, PixArt and the like lack parts, too.
    pipeline = index.get("_class_name", PIPELINES[0])
    if pipeline not in PIPELINES:
        raise ModelError(
            f"{path / INDEX}: _class_name is {pipeline}; this engine equals diffusers' StableDiffusionImg2ImgPipeline,"
            f" and diffusers runs only {', '.join(PIPELINES)} with it"
        )
    config_files = {component: path / component / name for component, name in CONFIGS.items()}
    missing_files = [file for file in (path / INDEX, *config_files.values()) if not _present(file)]
    if missing_files:
        names = ", ".join(file.relative_to(path).as_posix() for file in missing_files)
        raise ModelError(f"{path}: parts missing ({names}); a Stable Diffusion 1.x directory has them all")
    config_of = {component: _read(file) for component, file in config_files.items()}
    _require_classes(path, index, config_of)
    configs = ModelConfigs(path, **config_of)
    _require_vae(_Fields(path / "vae" / "config.json", configs.vae))
    _require_text(configs)
    _require_unet(_Fields(path / "unet" / "config.json", configs.unet), configs)
    timesteps = _Fields(path / "scheduler" / "scheduler_config.json", configs.scheduler)
    timesteps.require_count("num_train_timesteps", default=1000)
    return configs


def require_vocabulary(folder: Path) -> None:
    """Refuse a tokenizer's folder without a vocabulary, of which transformers makes a tokenizer of nothing.

    Raises:
        ModelError: neither of the two kinds of vocabulary is there.
    """
    for names in VOCABULARIES:
        if all(_present(folder / name) for name in names):
            return
    kinds = " or ".join(map(" and ".join, VOCABULARIES))
    raise ModelError(f"{folder}: the tokenizer has no vocabulary; {kinds} must be there")


def _present(file: Path) -> bool:
    """Return whether a regular file is there.

    Raises:
        ModelError: a link leads nowhere, a git-lfs pointer stands in the file's place, or it cannot be read.
    """
    try:
        if file.is_symlink() and not file.exists():
            raise ModelError(f"{file}: a link that leads nowhere; fetch what it should lead to")
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    if start == LFS_POINTER:
        raise ModelError(f"{file}: a git-lfs pointer, not the file itself; run git lfs pull")
    return True


def _read(file: Path) -> Config:
    try:
        config = read_json(file)
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: not a config (no table of fields)")
    return config


def _require_classes(path: Path, index: Config, config_of: Mapping[str, Config]) -> None:
    """Refuse other classes than ours in the index, by which diffusers loads, and configs that contradict the index."""
    fields = _Fields(path / INDEX, index)
    for component, config in config_of.items():
        entry = index.get(component)
        pair = isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
        fields.require(component, pair, 'must be ["library", "class"]')
        library, name = index[component]
        class_names = CLASSES.get(component)
        if class_names is None:
            fields.require(component, library == "diffusers", "must be one of diffusers' schedulers")
            continue
        fields.require(component, name in class_names, f"must be {' or '.join(class_names)}")
        class_field = "tokenizer_class" if component == "tokenizer" else "_class_name"
        agrees = config.get(class_field, name) in class_names
        own_fields = _Fields(path / component / CONFIGS[component], config)
        own_fields.require(class_field, agrees, f"{INDEX} says {name}; one of the two is wrong")


def _require_vae(vae: _Fields) -> None:
    vae.require_widths("block_out_channels")
    vae.require_count("latent_channels")
    for name in ("in_channels", "out_channels"):
        vae.require(name, vae.config.get(name, 3) == 3, "must be 3: images are RGB")
    factor = vae.config.get("scaling_factor", 0.18215)  # diffusers' default
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    positive = is_number and math.isfinite(factor) and factor > 0
    vae.require("scaling_factor", positive, "must be a number above 0")
    for name in ("shift_factor", "latents_mean", "latents_std"):
        advice = "must be null: diffusers' Stable Diffusion pipelines do not apply it, so the latents would be off"
        vae.require(name, vae.config.get(name) in (None, 0), advice)


def _require_text(configs: ModelConfigs) -> None:
    text = _Fields(configs.path / "text_encoder" / "config.json", configs.text_encoder)
    kind = configs.text_encoder.get("model_type", "clip_text_model")
    text.require("model_type", kind == "clip_text_model", "must be clip_text_model")
    # transformers would load the weights that this field names, in place of those whose hash we record.
    other_weights = configs.text_encoder.get("transformers_weights")
    text.require("transformers_weights", other_weights is None, "must be null: it names other weights")
    for name in ("hidden_size", "max_position_embeddings", "vocab_size"):
        text.require_count(name)
    tokenizer = _Fields(configs.path / "tokenizer" / "tokenizer_config.json", configs.tokenizer)
    tokenizer.require_count("model_max_length")
    positions = configs.text_encoder["max_position_embeddings"]
    advice = f"must be at most the text encoder's max_position_embeddings, {positions}: prompts are padded to it"
    tokenizer.require("model_max_length", configs.tokenizer["model_max_length"] <= positions, advice)


def _require_unet(unet: _Fields, configs: ModelConfigs) -> None:
    unet.require_widths("block_out_channels")
    for name in ("sample_size", "in_channels"):
        unet.require_count(name, default=4 if name == "in_channels" else None)
    advice = "the UNet needs more than prompt and timestep, which is all that diffusers' pipeline gives it"
    for name, values in _PLAIN_CONDITIONS.items():
        unet.require(name, unet.config.get(name) in values, advice)
    latent, channels = configs.vae["latent_channels"], unet.config.get("in_channels", 4)
    kind = f" (this is {_CHANNELS[channels]})" if latent == 4 and channels in _CHANNELS else ""
    unet.require("in_channels", channels == latent, f"must be the VAE's latent_channels, {latent}{kind}")
    unet.require("out_channels", unet.config.get("out_channels", 4) == latent, f"must be in_channels, {latent}")
    width = configs.text_encoder["hidden_size"]
    projected = unet.config.get("encoder_hid_dim") is not None
    name = "encoder_hid_dim" if projected else "cross_attention_dim"
    dims = unet.config.get(name, 1280)  # diffusers' default
    widths = dims if isinstance(dims, list) else [dims]  # one of all blocks, or one of each
    fits = bool(dims) and all(dim == width for dim in widths)
    unet.require(name, fits, f"must be the text encoder's hidden_size, {width}")


@dataclass(frozen=True, slots=True)
class _Fields:
    """A config and the file it was read from, which every refusal names."""

    file: Path
    config: Config

    def require(self, name: str, condition: object, advice: str) -> None:
        """Refuse the file unless the condition holds."""
        if not condition:
            value = json.dumps(self.config[name]) if name in self.config else "missing"
            raise ModelError(f"{self.file}: {name} is {value}; {advice}")

    def require_count(self, name: str, *, default: int | None = None) -> None:
        """Refuse what is no whole number above 0; `default` is the library's where the field is missing."""
        value = self.config.get(name, default)
        self.require(name, _is_count(value), "must be a whole number above 0")

    def require_widths(self, name: str) -> None:
        """Refuse what is no list of whole numbers above 0."""
        value = self.config.get(name)
        are_counts = isinstance(value, list) and value and all(map(_is_count, value))
        self.require(name, are_counts, "must be a list of whole numbers above 0")


def _is_count(value: object) -> bool:
    # Python takes JSON's true for the integer 1.
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
