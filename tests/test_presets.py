"""`--preset`: what it sets, what wins over it, and what is said of it everywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from driving import ROOT, Finished, Ran, refused, run_cli
from models import write_model

from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.generation import PRESETS, SETTINGS, UNPROVEN, Preset
from d4m_fast.errors import UsageError

# Diffusers' own: it hands a tensor to NumPy the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Distill = Callable[..., Ran]
FAST = asdict(PRESETS["unipc"])


def resolved(run: Path) -> dict[str, Any]:
    options: dict[str, Any] = json.loads((run / "config.json").read_text())["options"]
    return {name: options[name] for name in SETTINGS}


def test_reference_is_the_official_code_s_and_the_default() -> None:
    """PNDM of the model, 50 steps, strength 0.7, guidance 8 everywhere."""
    config = DistillConfig()
    assert config == DistillConfig.of_preset("reference")
    assert (config.scheduler, config.steps, config.strength, config.guidance) == ("model", 50, 0.7, 8.0)
    assert config.interval == (0.0, 1.0)
    assert not config.unproven


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "reference"])
def test_every_other_preset_costs_less_and_is_unproven(name: Any) -> None:
    config = DistillConfig.of_preset(name)
    assert config.unproven
    assert {setting: getattr(config, setting) for setting in SETTINGS} == asdict(PRESETS[name])
    calls = run_cli("plan", "--model", "bundled", "--preset", name, "--json").json["request"]
    assert calls["calls"] + calls["guided_calls"] < 72


def test_what_is_given_wins_over_the_preset_alone() -> None:
    config = DistillConfig.of_preset("unipc", steps=20, guidance=None, ipc=3)
    assert {setting: getattr(config, setting) for setting in SETTINGS} == {**FAST, "steps": 20}
    assert config.ipc == 3


@pytest.mark.parametrize("interval", ["", "0.2", "0.2:", "0.2:0.6:1", "-0.1:0.5", "0.6:0.2", "0:1.1", "a:b", "0,2:0,6"])
def test_a_bad_interval_is_refused(interval: str) -> None:
    with pytest.raises(UsageError, match="--guidance-interval"):
        DistillConfig(guidance_interval=interval)


def test_an_interval_without_steps_leaves_no_run(distill: Distill, tmp_path: Path) -> None:
    refused(distill("--guidance-interval", "0.8:1"), 2, "no step lies in it", "--guidance 1")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, photos: Path, finished: Finished) -> Callable[..., Path]:
    """A run of the bare data with some flags; nothing of generation set by the fixture."""
    model = write_model(tmp_path_factory.mktemp("model"))
    folder = tmp_path_factory.mktemp("runs")

    def make(*flags: object) -> Path:
        run = folder / str(len(list(folder.iterdir())))
        given = ("--data", photos, "--model", model, "--ipc", 1, "--threads", 1, "--artifacts", finished.artifacts)
        ran = run_cli("distill", *given, "--out", run, *flags)
        assert ran.code == 0, ran.err
        (run / "said").write_text(ran.err)
        return run

    return make


def test_resolved_values_are_kept_and_unproven_ones_announced(named: Callable[..., Path]) -> None:
    run = named("--preset", "unipc", "--steps", 4)
    assert resolved(run) == {**FAST, "steps": 4}
    line = next(line for line in (run / "said").read_text().splitlines() if line.startswith("preset:"))
    assert line.startswith("preset: unipc, 2 UNet calls per image") and line.endswith(UNPROVEN)
    repeated = named("--config", run / "config.json")
    assert resolved(repeated) == resolved(run)
    assert (repeated / "config.json").read_bytes() == (run / "config.json").read_bytes()


def test_a_preset_given_as_a_flag_wins_over_a_file(named: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "d4m.toml").write_text('preset = "dpmpp"\nsteps = 6\nguidance = 3\n')
    file = ("--config", tmp_path / "d4m.toml")
    assert resolved(named(*file)) == {**asdict(PRESETS["dpmpp"]), "steps": 6, "guidance": 3.0}
    assert resolved(named(*file, "--preset", "unipc", "--guidance", 2)) == {**FAST, "guidance": 2.0}


def test_fewer_calls_are_unproven_under_any_name(distill: Distill) -> None:
    """Other strengths and guidances are the official code's own options."""
    assert UNPROVEN in distill().err  # the fixture's 4 steps
    config = DistillConfig(strength=0.5, guidance=4)
    assert not config.unproven
    assert DistillConfig(scheduler="pndm").unproven
    assert DistillConfig(guidance_interval="0:0.5").unproven


@pytest.mark.parametrize("command", ["distill", "plan"])
def test_help_offers_presets_with_their_reservation(command: str) -> None:
    said = " ".join(run_cli(command, "--help").out.split())
    assert all(name in said for name in PRESETS)
    assert UNPROVEN in said
    assert f"[default: {Preset.steps}, or the preset's" in said


def test_plan_counts_samples(tmp_path: Path) -> None:
    """A call without guidance is one sample: 5 calls of 8 steps, 3 of them guided, at t = 699, 559, 419, 279, 139."""
    flags = ("--scheduler", "dpmpp", "--steps", 8, "--guidance-interval", "0.2:0.6")
    ran = run_cli("plan", "--model", "bundled", "--images", 100, "--classes", 5, "--ipc", 2, *flags, "--json")
    figures = {f"{f['stage']} {f['name']}": f["low"] for f in ran.json["figures"]}
    assert figures["generation UNet calls per image"] == 5
    assert figures["generation UNet samples per image"] == 8
    each = 8 * figures["unet per sample"] + figures["vae_decoder per sample"]
    assert figures["generation per image"] == each
    assert ran.json["generation"]["unproven"] is True
    assert UNPROVEN in run_cli("plan", "--model", "bundled", "--images", 100, "--classes", 5, *flags).out


def test_every_preset_has_its_evidence() -> None:
    """Speed, distance, and accuracies of three generation seeds with both kinds of labels; and rows that say so."""
    page = (ROOT / "docs" / "presets.md").read_text()
    measured = [json.loads(line) for line in (ROOT / "bench" / "presets.jsonl").read_text().splitlines()]
    assert UNPROVEN in page
    for name, preset in PRESETS.items():
        settings = f"{preset.scheduler} {preset.steps} {preset.guidance_interval}"
        mine = [row for row in measured if row["arm"] == settings]
        assert ({"speed"} if name == "reference" else {"speed", "distance"}) <= {row["table"] for row in mine}, name
        for ipc in (10, 50):
            cells = {(row["labels"], row["seed"]) for row in mine if row.get("ipc") == ipc}
            assert cells == set(itertools.product(("soft", "hard"), range(3))), (name, ipc)
        rows = [line for line in page.splitlines() if line.startswith(f"| {name} ")]
        assert any(settings in row for row in rows), (name, settings)
        assert len(rows) >= 3, name
