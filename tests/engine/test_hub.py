"""Models by their hub id, from a cache made by hand: no test reaches for the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import Ran, refused, run_cli

from d4m_fast.engine.hub import is_hub_id
from d4m_fast.engine.model import open_model
from d4m_fast.errors import ModelError

ID = "somebody/tiny"
COMMITS = ("0" * 39 + "1", "0" * 39 + "2")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    path = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return path


def keep(cache: Path, model: Path, commit: str) -> Path:
    """Put a model into the cache as its `main`, each file a link to a blob as huggingface_hub has it."""
    repository = cache / f"models--{ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for file in model.rglob("*.*"):
        link, blob = (
            snapshot / file.relative_to(model),
            repository / "blobs" / f"{commit}-{file.parent.name}{file.name}",
        )
        for path in (link, blob):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def options_of(run: Path) -> dict[str, object]:
    options: dict[str, object] = json.loads((run / "config.json").read_text())["options"]
    return options


@pytest.mark.parametrize("name", ["a/b", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a.b/c_d-1"])
def test_what_may_be_a_hub_id(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["a", "/a/b", "./a/b", "../b", "a/b/c", "a/", "a/b@main", "a b/c", ""])
def test_what_may_not(name: str) -> None:
    assert not is_hub_id(name)


def test_a_cached_model_is_the_directory_it_was_made_from(cache: Path, tiny_model: Path) -> None:
    snapshot = keep(cache, tiny_model, COMMITS[0])
    model, directory = open_model(ID), open_model(str(tiny_model))
    assert (model.name, model.revision, model.path) == (ID, COMMITS[0], snapshot)
    assert (directory.name, directory.revision) == (str(tiny_model), None)
    assert model.sha256 == directory.sha256


def test_a_revision_is_the_one_asked_for(cache: Path, tiny_model: Path) -> None:
    for commit in COMMITS:
        keep(cache, tiny_model, commit)
    assert open_model(ID).revision == COMMITS[1]
    assert open_model(ID, COMMITS[0]).revision == COMMITS[0]
    with pytest.raises(ModelError, match="revision 'other' is neither in the hub's cache nor"):
        open_model(ID, "other")


def test_a_run_records_the_commit_and_goes_on_with_it(
    cache: Path, tiny_model: Path, distill: Callable[..., Ran], tmp_path: Path
) -> None:
    keep(cache, tiny_model, COMMITS[0])
    ran = distill("--model", ID)
    assert ran.code == 0, ran.err
    options = options_of(tmp_path / "run")
    assert (options["model"], options["revision"]) == (ID, COMMITS[0])
    keep(cache, tiny_model, COMMITS[1])  # main moves
    (tmp_path / "run" / "summary.json").unlink()
    assert distill("--model", ID).code == 0
    assert options_of(tmp_path / "run")["revision"] == COMMITS[0]
    again = run_cli("distill", "--config", tmp_path / "run" / "config.json", "--out", tmp_path / "copy", "--quiet")
    assert again.code == 0, again.err
    assert options_of(tmp_path / "copy")["revision"] == COMMITS[0]


def test_a_directory_wins_over_a_hub_id(
    cache: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache, tiny_model, COMMITS[0])
    shutil.copytree(tiny_model, tmp_path / ID)
    monkeypatch.chdir(tmp_path)
    assert (open_model(ID).name, open_model(ID).revision) == (str(tmp_path / ID), None)


def test_plan_needs_configs_only(cache: Path, tiny_model: Path) -> None:
    for weights in keep(cache, tiny_model, COMMITS[0]).rglob("*.safetensors"):
        weights.unlink()
    ran = run_cli("plan", "--model", ID, "--images", 100, "--classes", 5, "--ipc", 2, "--json")
    assert ran.code == 0, ran.err
    refused(run_cli("export", "--model", ID), 1, "safetensors", "missing")


@pytest.mark.parametrize("command", ["distill", "export", "plan"])
def test_neither_network_nor_cache_is_one_line(cache: Path, command: str) -> None:
    refused(run_cli(command, "--model", ID), 1, ID, "local directory")


def test_a_name_without_a_slash_is_a_directory(cache: Path) -> None:
    refused(run_cli("distill", "--model", "nowhere"), 1, "no such model directory")


@pytest.mark.parametrize("model", ["bundled", "directory"])
def test_a_revision_of_what_has_none_is_refused(tiny_model: Path, model: str) -> None:
    name = tiny_model if model == "directory" else model
    refused(run_cli("distill", "--model", name, "--revision", "main"), 2, "--revision is for models from the hub")


def test_only_safetensors_and_configs_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils._paths import filter_repo_objects

    asked: dict[str, Any] = {}

    def record(name: str, **given: object) -> str:
        asked.update({key: value for key, value in given.items() if isinstance(value, list)})
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", record)
    with pytest.raises(ModelError, match="parts missing"):
        open_model(ID)
    weights = "diffusion_pytorch_model"
    wanted = ["unet/config.json", f"unet/{weights}.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json"]
    others = [
        *("unet/model.bin", "v1-5.safetensors", "v1-5.ckpt", "README.md", "unet/code.py", "safety_checker/config.json"),
        *(f"unet/{weights}.{kind}.safetensors" for kind in ("fp16", "non_ema")),
    ]
    assert list(filter_repo_objects([*wanted, *others], **asked)) == wanted
