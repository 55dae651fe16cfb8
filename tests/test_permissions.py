"""What another user may not read: one line, and neither whole nor damaged."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import Finished, Ran, one_line, products, tree
from machine import NOBODY, Machine, root_only, run_on

from d4m_fast.fingerprints import fingerprint
from d4m_fast.runs import exports
from d4m_fast.runs.commit import write_of_run
from d4m_fast.runs.identity import essence
from d4m_fast.storage.state import CERTIFICATE, CONFIG, EVALUATION, GROUP, PLAN, SUMMARY, require_state, write_state


@root_only
def test_another_user(open_to_all: Path, distill_as_another: Callable[..., Ran], finished: Finished) -> None:
    nobody = Machine(user=NOBODY, variables={"HOME": None})
    assert distill_as_another().code == 0
    assert products(open_to_all / "run") == products(finished.run)
    (open_to_all / "run" / ".lock").chmod(0o600)
    os.chown(open_to_all / "run" / ".lock", 0, 0)
    one_line(distill_as_another("--quiet"), 6, ".lock: permission denied")
    assert run_on(nobody, open_to_all, "verify", open_to_all / "run").code == 0
    for name in ("plan.json", "config.json"):
        os.chown(open_to_all / "run" / name, 0, 0)
        (open_to_all / "run" / name).chmod(0o600)
        one_line(
            run_on(nobody, open_to_all, "verify", open_to_all / "run"), 6, f"{name}: cannot be read (Permission denied)"
        )


HIDDEN = (
    *("run/groups", "run/images", "run/images/bread", "run/prototypes", "run/evaluation"),
    *("art", "art/latents", "art/engines", "art/engines/{set}", "art/engines/{set}/onnx"),
    *("run/images/bread/00001.png", "run/prototypes/00001.safetensors", "run/manifest.jsonl", "run/summary.json"),
    *("run/evaluation/x.json", "art/engines/{set}/onnx/unet.onnx"),
)


@root_only
@pytest.mark.parametrize("flags", [(), ("--repair",)])
@pytest.mark.parametrize("name", HIDDEN)
def test_what_verify_may_not_see_is_neither_whole_nor_damaged(
    open_to_all: Path, finished: Finished, name: str, flags: tuple[str, ...]
) -> None:
    """Of another user: `Path.glob` and `os.path.exists` would pass over it, and a repair would remove sound groups."""
    root = open_to_all / "seen"
    shutil.copytree(finished.run, root / "run", ignore=shutil.ignore_patterns("evaluation"))
    shutil.copytree(finished.artifacts, root / "art")
    config = require_state(root / "run" / "config.json", CONFIG)
    folder = exports.folder_of(root / "art", config["model_sha256"])
    certified = {"unet.onnx": {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "unet.onnx").write_bytes(b"x")
    write_state(folder / "onnx" / exports.CERTIFICATE_FILE, CERTIFICATE, {"files": certified})
    (root / "run" / "evaluation").mkdir()
    write_state(root / "run" / "evaluation" / "x.json", EVALUATION, {})
    # As run on the export; its records are written anew, for they hold the config's fingerprint.
    config |= {"artifacts": str(root / "art"), "artifact_sha256": fingerprint(certified)}
    write_state(root / "run" / "config.json", CONFIG, config)
    for file, schema in (("plan.json", PLAN), ("summary.json", SUMMARY), ("groups/00000.json", GROUP)):
        fields = require_state(root / "run" / file, schema)
        write_of_run(root / "run" / file, schema, fingerprint(essence(config)), fields)
    for path in (root, *root.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    nobody = Machine(user=NOBODY)
    assert run_on(nobody, open_to_all, "verify", root / "run").code == 0
    before = tree(root)
    (root / name.format(set=folder.name)).chmod(0)
    one_line(run_on(nobody, open_to_all, "verify", root / "run", *flags), 6, "cannot be read (Permission denied)")
    assert tree(root) == before


@root_only
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_run_that_may_not_be_looked_into(open_to_all: Path, finished: Finished, mode: int) -> None:
    run = open_to_all / "run"
    shutil.copytree(finished.run, run)
    run.chmod(mode)
    for name in ("verify", "evaluate"):
        ran = run_on(Machine(user=NOBODY), open_to_all, name, run)
        one_line(ran, ran.code)
        assert ran.code in (1, 2, 6) and "not a run of ours" not in ran.err
