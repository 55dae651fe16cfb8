"""Models of many shapes and families, made from configs: each is equal to diffusers' pipeline, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import pytest
import torch
from driving import Ran, refused
from exactness import record
from foreign import drop, edit, write_pixart, write_sd3, write_xl
from models import TOKENS, WIDTH_TEXT, write_model

from d4m_fast.config.distill import NEGATIVE_PROMPT, DistillConfig
from d4m_fast.engine import compatibility, generate
from d4m_fast.engine.eager import EagerRuntime
from d4m_fast.engine.libraries import quiet_libraries
from d4m_fast.engine.model import Model, open_model
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.schedule import Schedule, open_schedule
from d4m_fast.engine.trial import trial_resolution, try_networks
from d4m_fast.engine.unet import UnetModule, unproven
from d4m_fast.fingerprints import derive_seed
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.plan import Group
from d4m_fast.runs.records import Prototypes
from d4m_fast.sources.records import ClassInfo

EQUAL = 1e-5  # of pixels from 0 to 1, before they are rounded to bytes
CPU = torch.device("cpu")
IPC = 2
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
CLASSES = (ClassInfo(0, "cat", "a cat"), ClassInfo(1, "dog", "the dog on a mat"))
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


def scheduler(name: str, **config: Any) -> Any:
    with quiet_libraries():
        return getattr(diffusers, name)(**{**BETAS, **config})


def sd1(**unet: Any) -> Callable[[Path], Path]:
    return lambda path: write_model(path, unet=unet)


def scheduled(name: str, **config: Any) -> Callable[[Path], Path]:
    return lambda path: write_model(path, scheduler=scheduler(name, **config))


def edited(file: str, **fields: Any) -> Callable[[Path], Path]:
    """Stable Diffusion 1.x's shape with fields of one config changed after it was saved."""

    def write(path: Path) -> Path:
        edit(write_model(path) / file, **fields)
        return path

    return write


def channels(count: int) -> Callable[[Path], Path]:
    config = {"in_channels": count, "out_channels": count}
    return lambda path: write_model(path, vae={"latent_channels": count}, unet=config)


def lcm(path: Path) -> Path:
    return write_model(path, unet={"time_cond_proj_dim": 16}, scheduler=scheduler("LCMScheduler"))


def sd2(path: Path) -> Path:
    """Wider text, heads by level, linear projections, v-prediction by DDIM, as Stable Diffusion 2.1 has them."""
    unet = {"use_linear_projection": True, "attention_head_dim": (2, 4), "cross_attention_dim": 32}
    text = {"hidden_act": "gelu", "num_hidden_layers": 3, "projection_dim": 32}
    sampler = scheduler("DDIMScheduler", prediction_type="v_prediction", steps_offset=1, clip_sample=False)
    return write_model(path, width_text=32, unet=unet, text=text, scheduler=sampler)


def masked_text(path: Path) -> Path:
    """Padding kept out of the attention; only a causal mask would let it pass unseen."""
    return write_model(path, text={"use_attention_mask": True})


EQUALS: dict[str, Callable[[Path], Path]] = {
    "SD 1.x, PNDM": sd1(),
    "SD 1.x, DDIM that clips (corrected)": scheduled("DDIMScheduler", clip_sample=True, steps_offset=0),
    "SD 1.x, DDIM with thresholding (stepped)": scheduled("DDIMScheduler", clip_sample=False, thresholding=True),
    "SD 1.x, Euler (timesteps between levels)": scheduled("EulerDiscreteScheduler"),
    "SD 1.x, Euler ancestral (noise of its own)": scheduled("EulerAncestralDiscreteScheduler"),
    "SD 1.x, DPM-Solver++ SDE with Karras sigmas": scheduled(
        "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
    ),
    "SD 1.x, Heun (two calls a step)": scheduled("HeunDiscreteScheduler"),
    "SD 1.x, LMS with Karras sigmas": scheduled("LMSDiscreteScheduler", use_karras_sigmas=True),
    "SD 1.x, UniPC of order 3": scheduled("UniPCMultistepScheduler", solver_order=3),
    "SD 1.x, DDPM": scheduled("DDPMScheduler"),
    "SD 1.x, EDM Euler": lambda path: write_model(path, scheduler=diffusers.EDMEulerScheduler()),
    "SD 1.x of before diffusers 0.9": edited("unet/config.json", _diffusers_version="0.8.1"),
    "SD 1.x, saved for inpainting, 4 channels": lambda path: write_model(path, pipeline=PIPELINES[1]),
    "SD 2.x, v-prediction": sd2,
    "SD 2.x, zero terminal SNR": lambda path: write_model(path, scheduler=scheduler("DDIMScheduler", **ZERO_SNR)),
    "LCM-like, told the guidance scale": lcm,
    "LCM's scheduler, plain UNet": scheduled("LCMScheduler"),
    "turbo-like, trailing Euler": scheduled("EulerDiscreteScheduler", timestep_spacing="trailing"),
    "TCD": scheduled("TCDScheduler"),
    "VAE of 8 channels": channels(8),
    "VAE of 16 channels": channels(16),
    "VAE of 3 levels, without quantisation layers": lambda path: write_model(
        path, vae_channels=(8, 8, 16), vae={"use_quant_conv": False, "use_post_quant_conv": False}
    ),
    "VAE with another scaling factor": lambda path: write_model(path, vae={"scaling_factor": 0.9}),
    "text encoder with an attention mask": masked_text,
    "UNet: only cross-attention": sd1(only_cross_attention=True),
    "UNet: no middle block": sd1(mid_block_type=None),
    "UNet: middle block without attention": sd1(mid_block_type="UNetMidBlock2D"),
    "UNet: Fourier time embedding": sd1(time_embedding_type="fourier"),
    "UNet: activation after the time embedding": sd1(time_embedding_act_fn="silu", timestep_post_act="silu"),
    "UNet: centred input": sd1(center_input_sample=True),
    "UNet: gated attention": sd1(attention_type="gated"),
    "UNet: projected text": lambda path: write_model(
        path, unet={"encoder_hid_dim": WIDTH_TEXT, "encoder_hid_dim_type": "text_proj", "cross_attention_dim": 24}
    ),
    "UNet: text added to the time embedding": sd1(addition_embed_type="text", addition_embed_type_num_heads=4),
    "UNet: several transformers a layer": sd1(transformer_layers_per_block=(1, 2)),
    "UNet: transformers a layer, reversed": sd1(
        transformer_layers_per_block=(1, 2), reverse_transformer_layers_per_block=(2, 1)
    ),
    "UNet: scale and shift by time": sd1(resnet_time_scale_shift="scale_shift"),
    "UNet: time twice, skipped residuals": sd1(resnet_skip_time_act=True, resnet_out_scale_factor=1.5),
    "UNet: other kernels": sd1(conv_in_kernel=5, conv_out_kernel=5),
    "UNet: upcast attention, another activation": sd1(upcast_attention=True, act_fn="gelu"),
    "UNet: cosine first, shifted frequencies": sd1(flip_sin_to_cos=False, freq_shift=1),
    "UNet: layers by level": sd1(layers_per_block=(1, 2)),
    "UNet: residual up- and downsampling": lambda path: write_model(
        path,
        unet={
            "down_block_types": ("CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
            "up_block_types": ("ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"),
        },
    ),
    "UNet: simple cross-attention": sd1(
        down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    ),
    "UNet: no skipped levels of attention": sd1(
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "LCM-like, told the guidance scale": {"steps": 8, "strength": 0.5},
    "turbo-like, trailing Euler": {"steps": 2, "strength": 0.5, "guidance": 0.0},
}
FEW_STEPS = [(1, 1.0), (2, 1.0), (4, 0.7)]
# Broken or foreign models: how each is written, and what the one line must name.
REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "inpainting, 9 channels": (sd1(in_channels=9), ("unet/config.json", "in_channels is 9", "inpainting")),
    "editing, 8 channels": (sd1(in_channels=8), ("unet/config.json", "in_channels is 8", "edit")),
    "depth, 5 channels": (sd1(in_channels=5), ("unet/config.json", "in_channels is 5", "depth")),
    "upscaler, 7 channels": (sd1(in_channels=7, num_class_embeds=1000), ("unet/config.json", "num_class_embeds")),
    "learned variance": (sd1(out_channels=8), ("unet/config.json", "out_channels is 8")),
    "class-conditional": (sd1(num_class_embeds=10), ("unet/config.json", "num_class_embeds is 10")),
    "class embeddings by projection": (
        sd1(class_embed_type="projection", projection_class_embeddings_input_dim=8),
        ("unet/config.json", "class_embed_type"),
    ),
    "dual cross-attention, which diffusers cannot run": (
        sd1(dual_cross_attention=True),
        ("unet does not run", "DualTransformer2DModel"),
    ),
    "image-conditional": (
        sd1(encoder_hid_dim=16, encoder_hid_dim_type="image_proj"),
        ("unet/config.json", "encoder_hid_dim_type"),
    ),
    "XL-like, two text encoders": (write_xl, ("model_index.json", "StableDiffusionXLPipeline")),
    "XL-like under another pipeline's name": (
        lambda path: _renamed(write_xl(path)),
        ("unet/config.json", "addition_embed_type"),
    ),
    "PixArt-like": (write_pixart, ("model_index.json", "PixArtAlphaPipeline")),
    "SD3-like": (write_sd3, ("model_index.json", "StableDiffusion3Pipeline")),
    "LCM's own pipeline": (
        edited("model_index.json", _class_name="LatentConsistencyModelPipeline"),
        ("model_index.json", "LatentConsistencyModelPipeline"),
    ),
    "another VAE's class": (
        edited("model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        ("model_index.json", "AutoencoderTiny"),
    ),
    "a VAE's config of another class": (
        edited("vae/config.json", _class_name="AutoencoderTiny"),
        ("vae/config.json", "AutoencoderTiny"),
    ),
    "another UNet's class": (
        edited("model_index.json", unet=["diffusers", "UNet2DModel"]),
        ("model_index.json", "UNet2DModel"),
    ),
    "another text encoder": (
        edited("model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        ("model_index.json", "T5EncoderModel"),
    ),
    "another tokenizer": (
        edited("model_index.json", tokenizer=["transformers", "T5Tokenizer"]),
        ("model_index.json", "T5Tokenizer"),
    ),
    "a component of nothing": (edited("model_index.json", scheduler=[None, None]), ("model_index.json", "scheduler")),
    "no index": (lambda path: _without(path, "model_index.json"), ("parts missing (model_index.json)",)),
    "a flow": (
        lambda path: write_model(path, scheduler=diffusers.FlowMatchEulerDiscreteScheduler()),
        ("scheduler", "FlowMatchEulerDiscreteScheduler", "add_noise"),
    ),
    "VAE with a shift": (edited("vae/config.json", shift_factor=0.1), ("vae/config.json", "shift_factor is 0.1")),
    "VAE with means": (edited("vae/config.json", latents_mean=[0.1] * 4), ("vae/config.json", "latents_mean")),
    "VAE with deviations": (edited("vae/config.json", latents_std=[0.1] * 4), ("vae/config.json", "latents_std")),
    "no scaling factor": (
        edited("vae/config.json", scaling_factor=None),
        ("scaling_factor is null",),
    ),
    "scaling factor of NaN": (edited("vae/config.json", scaling_factor=float("nan")), ("vae/config.json", "NaN")),
    "grey VAE": (edited("vae/config.json", in_channels=1), ("vae/config.json", "in_channels is 1")),
    "latent channels that do not fit": (
        lambda path: write_model(path, vae={"latent_channels": 8}),
        ("unet/config.json", "in_channels is 4", "latent_channels, 8"),
    ),
    "sample size of two numbers": (edited("unet/config.json", sample_size=[8, 8]), ("unet/config.json", "sample_size")),
    "no sample size": (edited("unet/config.json", sample_size=None), ("unet/config.json", "sample_size is null")),
    "text that does not fit the UNet": (
        lambda path: write_model(path, unet={"cross_attention_dim": 24}),
        ("unet/config.json", "cross_attention_dim is 24", "hidden_size, 16"),
    ),
    "tokenizer without a length": (
        edited("tokenizer/tokenizer_config.json", model_max_length=1e30),
        ("tokenizer/tokenizer_config.json", "model_max_length is 1e+30"),
    ),
    "tokenizer longer than the text encoder": (
        edited("tokenizer/tokenizer_config.json", model_max_length=77),
        ("tokenizer/tokenizer_config.json", "model_max_length is 77", f"max_position_embeddings, {TOKENS}"),
    ),
    "tokenizer without vocabulary": (lambda path: _without(path, "tokenizer/tokenizer.json"), ("tokenizer", "vocab")),
    "tokenizer of more tokens": (
        lambda path: write_model(path, text={"vocab_size": 100}),
        ("tokenizer", "vocab_size", "100"),
    ),
    "steps of nothing": (
        edited("scheduler/scheduler_config.json", num_train_timesteps=0),
        ("scheduler/scheduler_config.json", "num_train_timesteps is 0"),
    ),
    "weights that do not fit": (
        edited("unet/config.json", block_out_channels=[16, 16]),
        ("unet cannot be loaded", "size"),
    ),
    "a pointer in a config's place": (
        lambda path: _pointer(path, "unet/config.json"),
        ("unet/config.json", "git-lfs pointer"),
    ),
    "a link that leads nowhere": (lambda path: _dangling(path, "vae/config.json"), ("vae/config.json", "link")),
}


def _renamed(path: Path) -> Path:
    edit(path / "model_index.json", _class_name=PIPELINES[0])
    drop(path / "model_index.json", "text_encoder_2")
    edit(path / "unet" / "config.json", cross_attention_dim=WIDTH_TEXT)
    return path


def _without(path: Path, name: str) -> Path:
    (write_model(path) / name).unlink()
    return path


def _pointer(path: Path, name: str) -> Path:
    (write_model(path) / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return path


def _dangling(path: Path, name: str) -> Path:
    (write_model(path) / name).unlink()
    (path / name).symlink_to(path / "blobs" / "gone")
    return path


def prototypes(model: Model) -> list[Prototypes]:
    """Random latents of the size k-means gives."""
    shape = model.latent_shape(2 * model.factor * model.unet_factor)
    drawn = torch.randn(len(CLASSES), IPC, *shape, generator=torch.Generator().manual_seed(7)) * 0.7
    counts = np.ones(IPC, np.int64), np.ones(IPC), ("",) * IPC
    return [Prototypes(info, centroids.numpy(), *counts) for info, centroids in zip(CLASSES, drawn, strict=True)]


def by_diffusers(
    path: Path, batch: list[Prototypes], steps: int, strength: float, guidance: float
) -> tuple[np.ndarray, Any]:
    """Pixels (N, H, W, 3) in [0, 1] of diffusers' own pipeline, opened from the directory; and the pipeline."""
    with quiet_libraries():
        pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(np.concatenate([p.centroids for p in batch]))
    image = latents
    if latents.shape[1] != 4:  # the pipeline takes four channels as latents, and encodes all else
        image = torch.zeros(len(latents), 3, 8, 8)
        pipeline.vae.encode = _Encoded(latents / pipeline.vae.config.scaling_factor)
    with quiet_libraries():
        pixels: np.ndarray = pipeline(
            prompt=[p.info.prompt for p in batch for _ in range(IPC)],
            negative_prompt=[NEGATIVE_PROMPT] * len(latents),
            image=image,
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[_generator(p.info.id, i) for p in batch for i in range(IPC)],
            output_type="np",
        ).images
    return pixels, pipeline


def _generator(class_id: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(0, class_id, index, "generate"))


class _Encoded:
    """In place of a VAE's `encode`: latents that are there already, one after the other."""

    def __init__(self, latents: torch.Tensor) -> None:
        self._rows = iter(latents.unsqueeze(1))

    def __call__(self, _: torch.Tensor) -> Any:
        return type("Encoded", (), {"latents": next(self._rows)})()


def by_us(networks: Networks, schedule: Schedule, batch: list[Prototypes], guidance: float) -> np.ndarray:
    """Pixels (N, H, W, 3) in [0, 1] of our own generation, as a run does it."""
    watch = Stopwatch()
    with Workers(watch) as workers:
        samples = generate.generate(
            Stream(len(batch), batch),
            [Group(0, tuple(p.info.id for p in batch), len(batch) * IPC, len(batch) * IPC)],
            networks,
            schedule,
            DistillConfig(ipc=IPC, guidance=guidance),
            image_size=batch[0].centroids.shape[2] * 10**6,  # replaced below: nothing is resized
            workers=workers,
            watch=watch,
        )
        return np.stack([sample.pixels for sample in samples])


@pytest.fixture
def before_quantisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoded pixels through as they are."""
    monkeypatch.setattr(generate, "to_bytes", lambda pixels: pixels.permute(0, 2, 3, 1))
    monkeypatch.setattr(generate, "resized", lambda pixels, image_size: pixels)
    monkeypatch.setattr(generate, "Sample", lambda *fields, **_: type("Sample", (), {"pixels": fields[-1]})())


@pytest.mark.usefixtures("before_quantisation")
@pytest.mark.parametrize("name", EQUALS)
def test_equal(name: str, tmp_path: Path) -> None:
    settings = {"steps": 10, "strength": 0.7, "guidance": 8.0, **SETTINGS.get(name, {})}
    distance, how = distance_of(EQUALS[name](tmp_path / "model"), **settings)
    record("models", {name: {"outcome": "equal", "difference": distance, **how}})
    assert distance <= EQUAL, how


@pytest.mark.usefixtures("before_quantisation")
@pytest.mark.parametrize(("steps", "strength"), FEW_STEPS)
@pytest.mark.parametrize("name", ["LCM-like, told the guidance scale", "turbo-like, trailing Euler"])
def test_few_steps(name: str, steps: int, strength: float, tmp_path: Path) -> None:
    distance, _ = distance_of(EQUALS[name](tmp_path / "model"), steps=steps, strength=strength, guidance=1.5)
    assert distance <= EQUAL


def distance_of(path: Path, *, steps: int, strength: float, guidance: float) -> tuple[float, dict[str, str]]:
    """Largest difference of a pixel between our images and diffusers', and what computed ours."""
    model = open_model(str(path))
    schedule = open_schedule(model.path, steps, strength)
    networks = open_networks(model.path, CPU, torch.float32, reference=schedule.sensitive)
    try_networks(model, networks, trial_resolution(model))
    batch = prototypes(model)
    expected, pipeline = by_diffusers(path, batch, steps, strength, guidance)
    module = cast(EagerRuntime, networks.unet.runtime)._module
    ours = isinstance(module, UnetModule)
    assert ours == (not unproven(pipeline.unet.config) and not schedule.sensitive)
    how = {
        "unet": "ours" if ours else "diffusers' forward",
        "schedule": "table" if schedule.stepper is None else "stepped",
    }
    assert expected.std() > 1e-3
    return float(np.abs(by_us(networks, schedule, batch, guidance) - expected).max()), how


def test_the_pipelines_are_those_that_diffusers_itself_would_open_so() -> None:
    from diffusers.pipelines import auto_pipeline

    groups = (auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING, auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING)
    ours = diffusers.StableDiffusionImg2ImgPipeline
    kinds = [kind for kind, p in auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.items() if p is ours]
    assert {group[kind].__name__ for group in groups for kind in kinds} | {ours.__name__} == set(
        compatibility.PIPELINES
    )


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path, distill: Callable[..., Ran]) -> None:
    """In one line, with exit code 1, before anything is encoded or written."""
    write, said = REFUSED[name]
    path = write(tmp_path / "model")
    ran = distill("--model", path)
    refused(ran, 1, *said)
    lines = [line for line in ran.err.splitlines() if not line.startswith(("engine: ", "preset: ", "data: ", "class "))]
    assert len(lines) == 1, ran.err
    record("models", {name: {"outcome": lines[0].removeprefix("error: ").replace(f"{path}", "MODEL")}})
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "art").exists()
