"""Our UNet's forward pass where it drops a condition of the config: load, export and certify each see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving import Ran, json_lines, refused, run_cli, write_photos
from foreign import edit
from models import write_model
from PIL import Image

from d4m_fast.engine import eager
from d4m_fast.engine.networks import open_networks
from d4m_fast.engine.schedule import Schedule, open_schedule
from d4m_fast.engine.unet import PROVEN, unproven
from d4m_fast.errors import ModelError
from d4m_fast.storage.state import CERTIFICATE, require_state, write_state

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("eight_calls")

CONDITIONS: dict[str, dict[str, Any]] = {
    "only_cross_attention": {"only_cross_attention": True},
    "center_input_sample": {"center_input_sample": True},
    "time_embedding_act_fn": {"time_embedding_act_fn": "silu"},
    "addition_embed_type": {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
    "encoder_hid_dim_type": {"encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj"},
}


def forget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let our module believe that it was proven on every value of a key, as it once did."""
    keys = {name, "encoder_hid_dim"} if name == "encoder_hid_dim_type" else {name}
    table = {key: None if key in keys else values for key, values in PROVEN.items()}
    monkeypatch.setattr("d4m_fast.engine.unet.PROVEN", table)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", ("apple", "bread"), 16)


def foreign(tmp_path: Path, name: str = "only_cross_attention") -> Path:
    return write_model(tmp_path / "model", unet=CONDITIONS[name])


@pytest.mark.parametrize("name", CONDITIONS)
def test_load_sees_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = foreign(tmp_path, name)
    open_networks(model, CPU, torch.float32).unet  # noqa: B018  # through diffusers' forward: nothing is dropped
    forget(name, monkeypatch)
    with pytest.raises(ModelError, match="our forward pass is"):
        open_networks(model, CPU, torch.float32).unet  # noqa: B018


def test_distill_sees_it(tmp_path: Path, distill: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    forget("only_cross_attention", monkeypatch)
    refused(distill("--model", foreign(tmp_path)), 1, "our forward pass is")
    assert not (tmp_path / "art").exists()


def export(model: Path, many: Path, tmp_path: Path) -> Ran:
    options = ("--data", many, "--images", 4, "--artifacts", tmp_path / "art", "--quiet")
    return run_cli("export", "--model", model, *options)


def test_export_sees_it(tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget("only_cross_attention", monkeypatch)
    refused(export(foreign(tmp_path), many, tmp_path), 1, "rejected", "unet: relative L2")


@pytest.mark.parametrize("at_load", [True, False])
def test_certify_sees_it(at_load: bool, tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check at load, and by the comparison, whose reference never is our own forward pass."""
    forget("only_cross_attention", monkeypatch)
    if not at_load:
        monkeypatch.setattr(eager, "require_equal", lambda *_: None)
    options = ("--data", many, "--images", 4, "--artifacts", tmp_path / "art", "--out", tmp_path / "certificate")
    ran = run_cli("certify", "--model", foreign(tmp_path), *options, "--steps", "parity-torch", "--quiet")
    assert ran.code == 1
    assert ("our forward pass is" if at_load else "unet: relative L2") in ran.out


def test_what_is_not_proven_is_exported_through_diffusers_forward(
    tmp_path: Path, many: Path, distill: Callable[..., Ran]
) -> None:
    model = foreign(tmp_path)
    ran = export(model, many, tmp_path)
    assert ran.code == 0, ran.err
    pixels = {}
    for engine in ("torch", "onnx"):
        run = tmp_path / engine
        assert distill("--model", model, "--data", many, "--engine", engine, "--out", run).code == 0
        images = [Image.open(run / row["file"]) for row in json_lines(run / "manifest.jsonl")]
        pixels[engine] = np.stack([np.asarray(image, int) for image in images])
    assert np.abs(pixels["torch"] - pixels["onnx"]).max() <= 1


def scheduled(model: Path, name: str, **fields: Any) -> Path:
    edit(model / "model_index.json", scheduler=["diffusers", name])
    edit(model / "scheduler" / "scheduler_config.json", _class_name=name, **fields)
    return model


def test_timesteps_between_two_levels_are_not_exported(
    tmp_path: Path, many: Path, distill: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported networks take whole ones: none is made for others, and one that is there is not taken for them."""
    model = scheduled(write_model(tmp_path / "model"), "EulerDiscreteScheduler", timestep_spacing="linspace")
    refused(export(model, many, tmp_path), 1, "timesteps between two noise levels", "--engine torch")
    scheduled(model, "PNDMScheduler", timestep_spacing="leading")
    assert export(model, many, tmp_path).code == 0
    (file,) = tmp_path.rglob("certificate.json")
    certificate = require_state(file, CERTIFICATE)
    certificate["speed"]["ratio"] = 2.0  # a busy machine may measure less than 1, and then that is the reason
    write_state(file, CERTIFICATE, certificate)

    def between(*args: Any, **options: Any) -> Schedule:
        schedule = open_schedule(*args, **options)
        steps = [replace(step, timestep=step.timestep + 0.5) for step in schedule.steps]
        return replace(schedule, steps=tuple(steps))

    monkeypatch.setattr("d4m_fast.job.open_schedule", between)
    options = ("--model", model, "--data", many)
    refused(distill(*options, "--engine", "onnx"), 1, "--engine onnx: the schedule has timestep", "--engine torch")
    ran = distill(*options)
    assert ran.code == 0
    assert "engine: torch; the schedule has timestep" in ran.err


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"unet": {"time_cond_proj_dim": 16}}, "time_cond_proj_dim"),
        ({"text": {"use_attention_mask": True}}, "use_attention_mask"),
    ],
)
def test_what_exported_networks_do_not_take_is_refused(
    config: dict[str, Any], said: str, tmp_path: Path, many: Path
) -> None:
    refused(export(write_model(tmp_path / "model", **config), many, tmp_path), 1, said, "--engine torch")


def test_an_unknown_key_is_not_proven() -> None:
    config = {"down_block_types": (), "up_block_types": (), "_class_name": "UNet2DConditionModel"}
    assert unproven(config) == []
    assert unproven({**config, "rotary": True}) == ["rotary=True"]
    assert unproven({**config, "down_block_types": ("KDownBlock2D",)}) == ["KDownBlock2D"]


def test_every_key_of_diffusers_is_in_the_table() -> None:
    """A key that is new in diffusers goes through its own forward until it is looked at."""
    import inspect

    from diffusers import UNet2DConditionModel

    keys = set(inspect.signature(UNet2DConditionModel.__init__).parameters) - {"self"}
    assert keys == set(PROVEN)
