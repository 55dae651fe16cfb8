"""Prompts that a model cannot read or does not know, and what a run says of its classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import Finished, Ran, refused, run_cli

Distill = Callable[..., Ran]


def prompts_of(folder: Path, *lines: str) -> Path:
    file = folder / "prompts.txt"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_the_first_three_pairs_are_shown(distill: Distill, tmp_path: Path, photos: Path) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    (data / "bread" / "notes.txt").touch()
    (data / "__MACOSX").mkdir()
    ran = distill("--data", data, "--prompts", prompts_of(tmp_path, "an apple", "one", "one"))
    assert ran.code == 0, ran.err
    lines = ran.err.splitlines()
    assert "class 0: apple -> an apple" in lines
    assert "class 2: cloud -> one" in lines
    assert "one prompt for several classes: one (bread, cloud)" in lines
    assert "left out: 1 .txt" in lines
    assert "skipped folders: __MACOSX" in lines
    assert distill("--data", data, "--prompts", tmp_path / "prompts.txt", "--quiet").err == ""


def test_a_prompt_that_would_be_cut_is_refused(distill: Distill, tmp_path: Path) -> None:
    file = prompts_of(tmp_path, "an apple", "bread " * 200, "a cloud")
    refused(distill("--prompts", file), 2, "class bread: its prompt has", "would cut", "--prompts FILE")
    assert not list((tmp_path / "art").glob("latents/*/*.npy"))


def test_a_negative_prompt_that_would_be_cut_is_refused_where_it_is_used(distill: Distill) -> None:
    refused(distill("--negative-prompt", "bad " * 200), 2, "--negative-prompt: has", "tokens")
    assert distill("--negative-prompt", "bad " * 200, "--guidance", 1).code == 0


def test_different_prompts_with_equal_tokens_are_refused(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from d4m_fast.engine.networks import TextEncoder

    ids = TextEncoder.token_ids
    monkeypatch.setattr(TextEncoder, "token_ids", lambda self, ps: ids(self, [p.removesuffix(" red") for p in ps]))
    file = prompts_of(tmp_path, "apple", "apple red", "a cloud")
    refused(distill("--prompts", file), 2, "classes apple, bread", "the same to the tokenizer")


def test_the_bundled_model_refuses_prompts_that_it_does_not_know(distill: Distill, tmp_path: Path) -> None:
    refused(distill("--model", "bundled"), 2, "apple", "class apple (3 of 3 classes)", "--allow-unknown-prompts")
    known = prompts_of(tmp_path, "bag", "Ankle boot", "T-shirt")
    assert distill("--model", "bundled", "--prompts", known, "--ipc", 1).code == 0


def test_unknown_prompts_are_taken_when_told(distill: Distill) -> None:
    assert distill("--model", "bundled", "--allow-unknown-prompts", "--ipc", 1).code == 0


def test_any_model_may_list_the_prompts_it_knows(distill: Distill, tiny_model: Path, tmp_path: Path) -> None:
    from d4m_fast.engine.model import open_model

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "prompts.json").write_text(json.dumps({"prompts": ["apple", "bread"]}))
    assert open_model(str(model)).sha256 == open_model(str(tiny_model)).sha256
    refused(distill("--model", model), 2, "'cloud' of class cloud (1 of 3 classes)")
    assert distill("--model", model, "--classes", "apple,bread").code == 0


def test_runs_below_the_data_are_no_classes(photos: Path, tmp_path: Path, finished: Finished) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    shutil.copytree(finished.run, data / "old")
    shutil.copytree(finished.artifacts, data / "cache")
    out, artifacts = ("--out", data / "apple" / "run"), ("--artifacts", data / "art")
    for _ in range(2):
        ran = run_cli("distill", *finished.options, "--data", data, *out, *artifacts)
        assert ran.code == 0, ran.err
        assert "class 2: cloud -> cloud" in ran.err
        assert len(list((data / "apple" / "run" / "images").iterdir())) == 3
    assert "not read: apple/run, art, cache, old" in ran.err
