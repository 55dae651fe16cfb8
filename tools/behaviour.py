"""SHA-256 of what a small run, an export and an evaluation make, as JSON on stdout.

    python tools/behaviour.py > tests/behaviour.json       # of this tree
    python tools/behaviour.py --commit HEAD~3              # of another commit, in a work tree that is removed again

`tests/test_behaviour.py` compares this tree with the file, on the processor and the libraries that the file is of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from d4m_fast.engine.runtime import processor_name

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("diffusers", "numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "torch", "transformers")
DISTILL = ("distill", "--classes", "1,8", "--ipc", "3", "--steps", "6", "--batch-size", "4", "--threads", "1")
EVALUATE = ("--width", "4", "--seeds", "1", "--workers", "1", "--regime", "hard", "--json")


def surroundings() -> dict[str, object]:
    """Return what the bytes of a run depend on, beside this package."""
    return {
        "processor": f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }


def behaviour(tree: Path, work: Path) -> dict[str, str]:
    """Return file -> SHA-256 of the products of the package in a tree; the accuracies of `evaluate` are one, too."""
    run, artifacts = work / "run", work / "artifacts"
    _command(tree, *DISTILL, "--engine", "torch", "--artifacts", str(artifacts), "--out", str(run))
    evaluated = _command(tree, "evaluate", str(run), *EVALUATE)
    _command(tree, "export", "--images", "2", "--threads", "1", "--artifacts", str(artifacts))
    files = [*run.glob("images/**/*.png"), *run.glob("prototypes/*"), run / "manifest.jsonl", run / "preview.png"]
    networks = sorted(artifacts.rglob("*.onnx"))
    digests = {str(file.relative_to(run)): _digest(file.read_bytes()) for file in sorted(files)}
    digests |= {file.name: _digest(file.read_bytes()) for file in networks}
    accuracies = {row["arm"]: row["accuracy"] for row in json.loads(evaluated)["rows"]}
    digests["evaluate's accuracies"] = _digest(json.dumps(accuracies, sort_keys=True).encode())
    return digests


def _command(tree: Path, *args: str) -> str:
    # Without OpenBLAS's switches: a kernel of another processor (OPENBLAS_CORETYPE) rounds otherwise.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment["PYTHONPATH"] = str(tree)
    command = [sys.executable, "-m", "d4m_fast", *args, "--quiet"]
    return subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit", help="of this repository, instead of the tree as it is")
    commit = parser.parse_args(args).commit
    with tempfile.TemporaryDirectory() as folder:
        tree = ROOT
        if commit is not None:
            tree = Path(folder) / "tree"
            subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", tree, commit], check=True, stdout=2)
        try:
            digests = behaviour(tree, Path(folder))
        finally:
            if commit is not None:
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    sys.stdout.write(json.dumps({**surroundings(), "sha256": digests}, indent=1) + "\n")


if __name__ == "__main__":
    main()
