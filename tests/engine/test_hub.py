"""Models by their hub id, from a cache made by hand: no test reaches for the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from driving import Ran, refused, run_cli
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import load_file, save_file

from d4m_fast.engine.hub import is_hub_id
from d4m_fast.engine.model import open_model
from d4m_fast.engine.weights import WEIGHTS
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


# Which weights are fetched


class Hub:
    """A repository to download from, into a snapshot; what is not in it stays away as from huggingface_hub's."""

    def __init__(self, repository: Path, snapshot: Path) -> None:
        self.repository, self.snapshot, self.calls = repository, snapshot, 0

    def download(self, name: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert (name, revision) == (ID, "main" if self.calls == 0 else self.snapshot.name)
        files = (str(file.relative_to(self.repository)) for file in self.repository.rglob("*.*") if file.is_file())
        matching = list(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        assert matching, "huggingface_hub warns where nothing matches"
        for file in matching:
            (self.snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / file, self.snapshot / file)
        self.calls += 1
        return str(self.snapshot)

    @property
    def files(self) -> set[str]:
        return {str(file.relative_to(self.snapshot)) for file in self.snapshot.rglob("*.*") if file.is_file()}


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The tiny model's repository, with what others have besides."""
    hub = Hub(Path(shutil.copytree(tiny_model, tmp_path / "repository")), tmp_path / COMMITS[0])
    for name in (
        *("unet/model.bin", "v1-5.safetensors", "v1-5.ckpt", "README.md", "unet/code.py", "safety_checker/config.json"),
        *(f"unet/{WEIGHTS['unet']}.{kind}" for kind in ("non_ema.safetensors", "fp16.bin", "non_ema.fp16.safetensors")),
    ):
        (hub.repository / name).parent.mkdir(exist_ok=True)
        (hub.repository / name).write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    return hub


def halve(model: Path, *parts: str, keep_full: bool = False) -> Path:
    """Save the weights of some parts in half precision, beside or instead of what is there."""
    for part in parts:
        file = model / part / f"{WEIGHTS[part]}.safetensors"
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        if not keep_full:
            file.unlink()
    return model


def test_only_safetensors_and_configs_are_fetched(hub: Hub, tiny_model: Path) -> None:
    model = open_model(ID)
    assert hub.files == {str(file.relative_to(tiny_model)) for file in tiny_model.rglob("*.*")}
    assert (model.weights_line, hub.calls) == ("", 1)


def test_half_precision_is_not_fetched_beside_full(hub: Hub) -> None:
    halve(hub.repository, *WEIGHTS, keep_full=True)
    shards = (f"{WEIGHTS['unet']}.fp16-00001-of-00002.safetensors", f"{WEIGHTS['unet']}.safetensors.index.fp16.json")
    for name in shards:
        (hub.repository / "unet" / name).write_text("not to be read")
    assert open_model(ID).weights_line == ""
    assert not [name for name in hub.files if "fp16" in name]


def test_half_precision_is_fetched_where_there_is_no_other(hub: Hub) -> None:
    halve(hub.repository, "unet", "text_encoder")
    (hub.repository / "vae" / f"{WEIGHTS['vae']}.safetensors.index.fp16.json").write_text("not to be read")
    model = open_model(ID)
    assert [part.variant for part in model.weights] == [None, "fp16", "fp16"]
    assert {name for name in hub.files if "fp16" in name} == {
        f"{part}/{WEIGHTS[part]}.fp16.safetensors" for part in ("unet", "text_encoder")
    }
    assert not [name for name in hub.files if "non_ema" in name or name.endswith(".bin")]


def test_shards_of_half_precision_are_fetched_with_their_index(hub: Hub) -> None:
    part = hub.repository / "unet"
    module = UNet2DConditionModel.from_pretrained(part).half()
    (part / f"{WEIGHTS['unet']}.safetensors").unlink()
    module.save_pretrained(part, variant="fp16", max_shard_size="40KB")
    unet = open_model(ID).weights[1]
    assert (unet.variant, len(unet.files) > 2) == ("fp16", True)


def test_no_weights_at_all(hub: Hub) -> None:
    (hub.repository / "unet" / f"{WEIGHTS['unet']}.safetensors").unlink()
    with pytest.raises(ModelError, match="parts missing"):
        open_model(ID)
    assert not [name for name in hub.files if "non_ema" in name]


def test_a_cached_model_of_half_precision(
    cache: Path, tiny_model: Path, distill: Callable[..., Ran], tmp_path: Path
) -> None:
    model = halve(Path(shutil.copytree(tiny_model, tmp_path / "model")), *WEIGHTS)
    keep(cache, model, COMMITS[0])
    assert open_model(ID).sha256 == open_model(str(model)).sha256
    ran = distill("--model", ID)
    assert ran.code == 0, ran.err
    assert "text_encoder: fp16 files (model.fp16.safetensors)" in ran.err


def test_half_precision_in_the_cache_does_not_stand_for_full_on_the_hub(
    cache: Path, tiny_model: Path, tmp_path: Path
) -> None:
    trees = pytest.importorskip("huggingface_hub._tree_cache")
    snapshot = keep(cache, halve(Path(shutil.copytree(tiny_model, tmp_path / "model")), *WEIGHTS), COMMITS[0])
    entry = trees.TreeCacheEntry(size=1, blob_id="0" * 40, lfs_sha256=None, lfs_size=None, xet_hash=None)
    listing = [
        f"unet/{WEIGHTS['unet']}.safetensors",
        *map(str, (f.relative_to(snapshot) for f in snapshot.rglob("*.*"))),
    ]
    trees.write_tree_cache(str(snapshot.parent.parent), COMMITS[0], dict.fromkeys(listing, entry))
    with pytest.raises(ModelError, match="neither in the hub's cache nor"):
        open_model(ID)
