"""Whatever is changed in a finished run, its latents or its export: it is found, or the images stay what they were.

`D4M_CHANGES=docs/state/changes.json pytest -m slow tests/test_changes.py` keeps the counts that docs/state.md shows.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from changes import CHANGES
from driving import Ran, run_cli, tree

from d4m_fast.evaluation import results
from d4m_fast.storage import files
from d4m_fast.storage.state import STUDENT, write_state

KINDS = (
    ("images/", "image"),
    ("prototypes/", "prototypes"),
    ("groups/", "group record"),
    ("evaluation/", "evaluation report"),
    ("latents/", "latents"),
    ("engines/", "export"),
)


@dataclass(frozen=True)
class Lab:
    """A finished run and its artifacts, whose files are changed one at a time and put back."""

    root: Path
    options: tuple[object, ...]
    images: dict[str, bytes]

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def artifacts(self) -> Path:
        return self.root / "art"

    def files(self) -> list[Path]:
        folders = (self.run, self.artifacts)
        return sorted(f for folder in folders for f in folder.rglob("*") if f.is_file() and f.name != ".lock")

    def verify(self, *flags: str) -> Ran:
        return run_cli("verify", self.run, *flags)

    def distill(self, run: Path) -> Ran:
        return run_cli("distill", *self.options, "--out", run, "--artifacts", self.artifacts, "--quiet")

    def images_of(self, run: Path) -> dict[str, bytes]:
        return tree(run, "images/**/*")


def laboratory(root: Path, options: tuple[object, ...]) -> Lab:
    lab = Lab(root, (*options, "--batch-size", 2), {})
    ran = lab.distill(lab.run)
    assert ran.code == 0, ran.err
    evaluation = lab.run / "evaluation"
    student = files.make_directory(evaluation / "students" / "0123456789abcdef") / "result.json"
    write_state(student, STUDENT, {"accuracy": 50.0})
    results.save(evaluation / "results.json", {"rows": [{"arm": "distilled", "accuracy": [50.0]}]})
    assert lab.verify().code == 0
    return Lab(lab.root, lab.options, lab.images_of(lab.run))


def kind_of(lab: Lab, file: Path) -> str:
    """What a file is, for the table."""
    name = str(file.relative_to(lab.run if file.is_relative_to(lab.run) else lab.artifacts))
    kind = next((kind for start, kind in KINDS if name.startswith(start)), name)
    suffix = file.suffix.removeprefix(".")
    return f"{kind} ({suffix})" if kind in ("latents", "export") else kind


def one_line(ran: Ran) -> bool:
    """Whether a command that failed said why, in one line."""
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    return "Traceback" not in ran.err + ran.out and len(errors) == 1 and len(ran.err.splitlines()) == 1


def outcome(lab: Lab) -> str:
    """What becomes of a change: "found by verify", or what a re-run makes of it."""
    verdict = lab.verify()
    if verdict.code != 0:
        assert verdict.code in (1, 4, 5, 6), verdict
        assert verdict.out.strip() or one_line(verdict), verdict
        assert "Traceback" not in verdict.err + verdict.out, verdict
        return "found by verify"
    fresh = lab.root / "fresh"
    try:
        for run in (lab.run, fresh):
            ran = lab.distill(run)
            if ran.code != 0:
                assert one_line(ran), ran
                return "refused by a re-run"
            assert lab.images_of(run) == lab.images, f"silent: {run}"
        return "same images"
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def after_repair(lab: Lab) -> str:
    """What `verify --repair` and a re-run make of a change."""
    lab.verify("--repair")
    ran = lab.distill(lab.run)
    if ran.code != 0:
        assert one_line(ran), ran
        return "refused"
    assert lab.images_of(lab.run) == lab.images
    return "same images"


def without_verify(lab: Lab) -> str:
    """What a new run from the same artifacts makes of a change that nobody looked for."""
    fresh = lab.root / "fresh"
    try:
        ran = lab.distill(fresh)
        if ran.code != 0:
            assert one_line(ran), ran
            return "refused"
        assert lab.images_of(fresh) == lab.images, "silent"
        return "same images"
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def count_outcomes(lab: Lab, changes: int, repaired: int) -> Counter[tuple[str, str, str]]:
    """(kind of file, kind of change, outcome) of seeded changes; of every `repaired`-th, it is repaired, too."""
    counts: Counter[tuple[str, str, str]] = Counter()
    names = [str(f.relative_to(lab.root)) for f in lab.files()]
    backup = lab.root / "backup"
    for folder in ("run", "art"):
        shutil.copytree(lab.root / folder, backup / folder)
    for seed in range(changes):
        rng = random.Random(seed)
        file = lab.root / rng.choice(names)
        name = rng.choice(list(CHANGES))
        while not CHANGES[name](file, rng):
            name = rng.choice(list(CHANGES))
        where = f"change {seed}: {name} of {file}"
        try:
            counts[kind_of(lab, file), name, outcome(lab)] += 1
            if seed % repaired == 0:
                counts["a new run, without verify", name, without_verify(lab)] += 1
                counts["after verify --repair", name, after_repair(lab)] += 1
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        for folder in ("run", "art"):  # a re-run may have made more than one file anew
            shutil.rmtree(lab.root / folder)
            shutil.copytree(backup / folder, lab.root / folder)
    return counts


def test_changes_of_a_run_and_its_latents(tmp_path: Path, options: tuple[object, ...]) -> None:
    counts = count_outcomes(laboratory(tmp_path, options), 120, repaired=10)
    assert {outcome for *_, outcome in counts} <= {"found by verify", "same images", "refused by a re-run", "refused"}
    assert counts.total() == 120 + 2 * 12


@pytest.mark.slow
def test_2000_changes_of_a_run_its_latents_and_its_export(tmp_path: Path, options: tuple[object, ...]) -> None:
    source = options[: options.index("--ipc")]
    exported = run_cli("export", *source, "--artifacts", tmp_path / "art", "--images", 6, "--quiet")
    assert exported.code == 0, exported.err
    counts = count_outcomes(laboratory(tmp_path, (*options, "--engine", "onnx")), 2000, repaired=20)
    assert {kind.partition(" ")[0] for kind, *_ in counts} >= {"export", "latents", "image", "plan.json", "group"}
    if "D4M_CHANGES" in os.environ:
        rows = [{"file": kind, "change": name, "outcome": what, "n": n} for (kind, name, what), n in counts.items()]
        Path(os.environ["D4M_CHANGES"]).write_text(json.dumps(sorted(rows, key=str), indent=1) + "\n")
