"""A model that cannot be loaded is one line on the terminal: the libraries' own reports are not beside it.

In a process of its own, whose stderr the libraries' loggers really write to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from driving import environment
from foreign import edit
from models import write_model
from safetensors.torch import load_file, save_file

MARK = "--- next ---"
LOOP = f"""
import sys
from d4m_fast import cli
data, folder, *models = sys.argv[1:]
for i, model in enumerate(models):
    options = ["--data", data, "--model", model, "--ipc", "1", "--steps", "4", "--artifacts", f"{{folder}}/art"]
    sys.argv = ["d4m-fast", "distill", *options, "--out", f"{{folder}}/run-{{i}}"]
    try:
        cli.main()
    except SystemExit as ended:
        print("{MARK}", 0 if ended.code is None else ended.code, file=sys.stderr, flush=True)
"""
Weights = dict[str, torch.Tensor]


def without(words: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: x for name, x in weights.items() if words not in name}


def more(weights: Weights) -> Weights:
    return {**weights, "something.else": torch.zeros(3)}


def reweighted(part: str, change: Callable[[Weights], Weights]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (file,) = (write_model(path) / part).glob("*.safetensors")
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return write


def edited(file: str, **fields: object) -> Callable[[Path], None]:
    return lambda path: edit(write_model(path) / file, **fields)


def tokenized(content: object) -> Callable[[Path], None]:
    return lambda path: _overwrite(write_model(path) / "tokenizer" / "tokenizer.json", json.dumps(content))


def _overwrite(file: Path, text: str) -> None:
    file.write_text(text)


WORDS = {"type": "WordLevel", "vocab": {"<|endoftext|>": 1, "<|startoftext|>": 0}, "unk_token": "<|endoftext|>"}
# How the model is written, and what its line must say; nothing for a model that runs in silence.
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights missing (diffusers)": (reweighted("unet", without("attn1")), "weights missing"),
    "weights missing (transformers)": (reweighted("text_encoder", without("mlp")), "weights missing"),
    "other shapes (diffusers)": (edited("vae/config.json", block_out_channels=[8, 8]), "in the file, [8"),
    "other shapes (transformers)": (edited("text_encoder/config.json", intermediate_size=64), "[64] by config.json"),
    "config refused by its own check": (edited("text_encoder/config.json", num_attention_heads=3), "multiple of"),
    "unknown activation": (edited("text_encoder/config.json", hidden_act="nonsense"), "nonsense"),
    "unknown block": (edited("unet/config.json", down_block_types=["NoBlock", "DownBlock2D"]), "NoBlock"),
    "a tokenizer of another kind": (tokenized({"added_tokens": [], "model": {"type": "BPE", "vocab": 5}}), "tokenizer"),
    "a tokenizer of no words": (tokenized({"version": "1.0", "added_tokens": [], "model": WORDS}), "tokenizer"),
    "more weights than the config": (reweighted("text_encoder", more), ""),
    "more weights than the config (diffusers)": (reweighted("unet", more), ""),
    "an unknown field": (edited("unet/config.json", rotary=True), ""),
    "an outdated scheduler": (edited("scheduler/scheduler_config.json", steps_offset=0, clip_sample=True), ""),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> dict[str, tuple[int, list[str]]]:
    """Exit code and lines of each case, but for what every run says of its way."""
    folder = tmp_path_factory.mktemp("lines")
    models = [folder / f"model-{i}" for i in range(len(CASES))]
    for path, (write, _) in zip(models, CASES.values(), strict=True):
        write(path)
    command = [sys.executable, "-c", LOOP, str(photos), str(folder), *map(str, models)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    blocks: list[tuple[int, list[str]]] = []
    lines = list[str]()
    for line in ran.stderr.splitlines():
        if line.startswith(MARK):
            blocks.append((int(line.split()[-1]), lines))
            lines = []
        elif not line.startswith(("engine: ", "preset: ", "data: ", "class ", "encode ", "distill ")):
            lines.append(line)
    return dict(zip(CASES, blocks, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_one_line(name: str, said: dict[str, tuple[int, list[str]]]) -> None:
    code, lines = said[name]
    (_, words) = CASES[name]
    assert (code, len(lines)) == ((1, 1) if words else (0, 0)), lines
    assert words in "".join(lines)
