"""Opening of a model's noise scheduler as diffusers' image-to-image pipeline has it: class, config, corrections."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d4m_fast.config.choices import Scheduler
from d4m_fast.engine.libraries import one_line, refusing
from d4m_fast.errors import PreflightError
from d4m_fast.storage.state import read_json

CONFIG = Path("scheduler", "scheduler_config.json")
# Samplers that run over the noise levels of any model.
_PRESETS: dict[Scheduler, str] = {"dpmpp": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
# StableDiffusionImg2ImgPipeline.__init__ puts these in place of a config's values where the scheduler has such a field
# (diffusers 0.42.1, pipeline_stable_diffusion_img2img.py); clip_sample only where it is true, so that both are "set".
_CORRECTIONS = {"steps_offset": 1, "clip_sample": False}


def open_scheduler(model: Path, name: Scheduler, strength: float) -> Any:
    """Return a diffusers scheduler for a checked model directory, before any timesteps are set.

    Args:
        name: "model" is the class that `model_index.json` names, "pndm" is PNDM with the model's config, as
            `PNDMScheduler.from_config(pipeline.scheduler.config)`; for "dpmpp" and "unipc" see `even_steps`.
        strength: for "dpmpp" and "unipc", the part of the noise levels they run over.

    Raises:
        ModelError: diffusers has no such scheduler, or refuses the config.
        PreflightError: the scheduler needs a package that is not installed.
    """
    class_name = scheduler_class(model)
    with refusing_scheduler(f"{model / CONFIG}: {class_name}"):
        own_scheduler = corrected(_class(class_name).from_config(_config(model)))
    if name == "model":
        return own_scheduler
    if name == "pndm":
        with refusing_scheduler(f"--scheduler pndm with {model / CONFIG}"):
            return _class("PNDMScheduler").from_config(own_scheduler.config)
    with refusing_scheduler(f"--scheduler {name} with {model / CONFIG}"):
        return even_steps(_class(_PRESETS[name]), own_scheduler, strength)


def scheduler_class(model: Path) -> str:
    """Return the class that diffusers would load: the pipeline's index decides, not the scheduler's own config."""
    index = read_json(model / "model_index.json")
    return str(index["scheduler"][1])


def corrected(scheduler: Any) -> Any:
    """Make the corrections that diffusers' image-to-image pipeline makes to a scheduler it is given."""
    fields = dict[str, Any]()
    for name, value in _CORRECTIONS.items():
        if getattr(scheduler.config, name, value) != value:
            fields[name] = value
    if fields:
        # Changes the config alone, as the pipeline does: nothing that was computed from it is computed anew.
        scheduler.register_to_config(**fields)
    return scheduler


def even_steps(sampler: Any, own_scheduler: Any, strength: float) -> Any:
    """Return a diffusers scheduler over the first `strength` of a model's noise levels, evenly spaced from their end.

    Few steps would start at another level than asked for if the whole schedule were cut: 8 evenly spaced steps can
    start at 5/8 or 6/8 of it, not at 0.7. Where the cut falls on a step the two are equal.

    The noise levels and the prediction type are the model's, everything else is the sampler's default: its sigmas
    (Karras, exponential, beta, flow, lambdas), thresholding or an SDE are choices of the model's own sampler.

    Args:
        sampler: class of the scheduler.
        own_scheduler: the model's.
    """
    betas = getattr(own_scheduler, "betas", None)
    if betas is None:
        raise ValueError(
            f"{type(own_scheduler).__name__} has no betas to take the noise levels from; use --scheduler model"
        )
    levels = max(round(len(betas) * strength), 1)
    return sampler(
        trained_betas=betas[:levels].tolist(),
        num_train_timesteps=levels,
        prediction_type=own_scheduler.config.get("prediction_type", "epsilon"),
        timestep_spacing="trailing",
        # The model's betas are rescaled already. To rescale all of them again changes nothing, and lets diffusers put
        # 2^-24 in place of the last level's signal, which is zero; to rescale a part of them would end that at zero.
        rescale_betas_zero_snr=bool(levels == len(betas) and betas[-1] == 1),
    )


@contextlib.contextmanager
def refusing_scheduler(where: str) -> Iterator[None]:
    """Turn what diffusers' schedulers raise into one line that begins with `where`, and keep their warnings quiet."""
    with refusing(f"{where}: cannot run in diffusers' image-to-image pipeline"):
        try:
            yield
        except ImportError as error:
            raise PreflightError(f"{where}: needs a package that is not installed ({one_line(error)})") from error


def _class(name: str) -> Any:
    import diffusers

    scheduler = getattr(diffusers, name, None)
    if scheduler is None or not hasattr(scheduler, "from_config"):
        raise ValueError("not one of diffusers' schedulers")
    return scheduler


def _config(model: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(model / CONFIG)
    return config


def train_timesteps(model: Path) -> int:
    """Return the number of noise levels that a model was trained with."""
    return int(_config(model).get("num_train_timesteps", 1000))
