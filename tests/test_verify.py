"""`d4m-fast verify`: whatever happens to a run's files is found, named and made again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import CLASSES, PER_CLASS, Finished, Ran, products, refused, run_cli, tree, write_photos
from PIL import Image

from d4m_fast.runs.commit import write_record
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked
from d4m_fast.storage.state import CONFIG, GROUP, SUMMARY, json_lines, require_state, write_state

Damage = Callable[[Path], None]
IMAGE = "images/bread/00001.png"


def flip(name: str) -> Damage:
    """One bit, the size kept."""

    def damage(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[len(data) // 2] ^= 1
        (run / name).write_bytes(bytes(data))

    return damage


def cut(name: str) -> Damage:
    def damage(run: Path) -> None:
        (run / name).write_bytes((run / name).read_bytes()[:-7])

    return damage


def lose(name: str) -> Damage:
    return lambda run: (run / name).unlink()


def say(name: str, text: str) -> Damage:
    def damage(run: Path) -> None:
        (run / name).write_text(text)

    return damage


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.run, tmp_path / "run"))


def again(finished: Finished, run: Path) -> Ran:
    return run_cli("distill", *finished.options, "--out", run, "--artifacts", finished.artifacts)


@pytest.mark.parametrize("flags", [(), ("--deep",), ("--repair",), ("--deep", "--repair")])
def test_a_whole_run_is_whole_and_stays_as_it_is(run: Path, flags: tuple[str, ...]) -> None:
    before = tree(run)
    ran = run_cli("verify", run, *flags, "--json")
    assert (ran.code, ran.json["whole"], ran.json["findings"]) == (0, True, [])
    assert (ran.json["images"], ran.json["groups"], ran.json["committed"]) == (6, 1, 1)
    assert tree(run) == before


@pytest.mark.parametrize(
    ("damage", "problem", "named"),
    [
        (flip(IMAGE), "damaged", IMAGE),
        (cut(IMAGE), "damaged", IMAGE),
        (lose(IMAGE), "missing", IMAGE),
        (flip("prototypes/00002.safetensors"), "damaged", "prototypes/00002.safetensors"),
        (lose("prototypes/00002.safetensors"), "missing", "prototypes/00002.safetensors"),
        (lose("groups/00000.json"), "missing", "groups/00000.json"),
        (say("groups/00000.json", "{"), "damaged", "groups/00000.json"),
        (say("groups/00000.json", '{"group": 0}'), "damaged", "groups/00000.json"),
        (say("groups/00000.json", "[]"), "damaged", "groups/00000.json"),
        (cut("manifest.jsonl"), "damaged", "manifest.jsonl"),
        (lose("manifest.jsonl"), "missing", "manifest.jsonl"),
        (lose("preview.png"), "missing", "preview.png"),
        (lose("plan.json"), "missing", "plan.json"),
        (lose("quarantine.jsonl"), "missing", "quarantine.jsonl"),
    ],
)
def test_damage_is_named_and_made_again(
    run: Path, finished: Finished, damage: Damage, problem: str, named: str
) -> None:
    damage(run)
    found = run_cli("verify", run, "--json")
    assert found.code == 5
    assert (problem, named) in {(f["problem"], f["file"]) for f in found.json["findings"]}
    said = run_cli("verify", run, "--repair")
    assert said.code == 5
    assert f"{problem}: {run / named}" in said.out
    assert f"d4m-fast distill --config {run}/config.json --out {run}" in said.out
    assert again(finished, run).code == 0
    assert products(run) == products(finished.run)
    assert run_cli("verify", run, "--deep", "--quiet") == Ran(0, "", "")


def test_the_command_it_says_works(run: Path, finished: Finished) -> None:
    flip(IMAGE)(run)
    command = run_cli("verify", run, "--repair", "--json").json["command"].split()
    assert command[-2:] == ["--artifacts", str(finished.artifacts)]
    assert run_cli(*command[1:]).code == 0
    assert products(run) == products(finished.run)


def test_a_group_that_is_sound_is_not_made_again(tmp_path: Path, finished: Finished) -> None:
    run = tmp_path / "three"
    flags = ("--out", run, "--artifacts", finished.artifacts, "--batch-size", 1)
    assert run_cli("distill", *finished.options, *flags).code == 0
    whole = products(run)
    kept = {f: f.stat().st_mtime_ns for name in ("apple", "cloud") for f in (run / "images" / name).iterdir()}
    flip(IMAGE)(run)
    assert "groups/00001.json" in run_cli("verify", run, "--repair", "--json").json["removed"]
    assert run_cli("distill", *finished.options, *flags).code == 0
    assert products(run) == whole
    assert {f: f.stat().st_mtime_ns for f in kept} == kept


@pytest.mark.parametrize("name", ["images/bread/00007.png", "images/mine/a.jpg", "groups/notes.txt"])
def test_foreign_files_are_named_and_left_alone(run: Path, name: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("mine")
    ran = run_cli("verify", run, "--repair")
    assert (ran.code, f"foreign: {run / name}" in ran.out) == (5, True)
    assert (run / name).read_text() == "mine"
    assert (run / "summary.json").exists()


def test_what_a_kill_left_behind_is_swept(run: Path) -> None:
    (run / "images" / "bread" / ".tmp-1-00000.png").write_text("half")
    assert run_cli("verify", run, "--repair").code == 5
    assert run_cli("verify", run).code == 0


def test_deep_finds_what_was_recorded_wrong(run: Path) -> None:
    """A file that equals its record and is no image of the right size all the same."""
    Image.new("RGB", (8, 8)).save(run / IMAGE)
    record = run / "groups" / "00000.json"
    value = require_state(record, GROUP)
    (row,) = [r for r in value["images"] if r["file"] == IMAGE]
    row["bytes"] = (run / IMAGE).stat().st_size
    row["sha256"] = files.write_bytes(run / IMAGE, (run / IMAGE).read_bytes())
    record.unlink()
    write_record(run, value["config"], value)
    summary = require_state(run / "summary.json", SUMMARY)
    summary["sha256_of"]["manifest.jsonl"] = files.write_bytes(run / "manifest.jsonl", json_lines(value["images"]))
    write_state(run / "summary.json", SUMMARY, summary)
    assert run_cli("verify", run).code == 0
    assert "8 x 8 pixels, not 16 x 16" in run_cli("verify", run, "--deep").out


DERIVED = ("summary.json", "manifest.jsonl", "quarantine.jsonl", "preview.png")


@pytest.mark.parametrize("names", [("plan.json",), ("summary.json",), DERIVED, ("groups/00000.json",)])
def test_sound_files_of_another_run(run: Path, finished: Finished, tmp_path: Path, names: tuple[str, ...]) -> None:
    """All of them are whole, and agree with each other."""
    other, artifacts = tmp_path / "other", ("--artifacts", finished.artifacts)
    assert run_cli("distill", *finished.options, "--seed", 1, "--out", other, *artifacts).code == 0
    for name in names:
        shutil.copy(other / name, run / name)
    ran = run_cli("verify", run)
    assert (ran.code, f"damaged: {run / names[0]} (it is of another run)" in ran.out) == (5, True), ran
    refused(again(finished, run), 5, names[0], "it is of another run")
    run_cli("verify", run, "--repair")
    assert again(finished, run).code == 0
    assert products(run) == products(finished.run)


def test_latents_under_the_name_of_others(run: Path, finished: Finished, tmp_path: Path) -> None:
    """The latents of another set, of as many images, in the place of those that the run was made from."""
    artifacts = tmp_path / "art"
    photos = write_photos(tmp_path / "photos", CLASSES, PER_CLASS, seed=1)
    flags = ("--out", tmp_path / "other", "--artifacts", artifacts)
    assert run_cli("distill", *finished.options, "--data", photos, *flags).code == 0
    (theirs,) = (artifacts / "latents").iterdir()
    (ours,) = (finished.artifacts / "latents").iterdir()
    theirs.rename(theirs.with_name(ours.name))
    config = require_state(run / "config.json", CONFIG)
    write_state(run / "config.json", CONFIG, {**config, "artifacts": str(artifacts)})
    ran = run_cli("verify", run)
    assert (ran.code, "made by something else than its name says" in ran.out) == (5, True), ran


def test_readers_share_a_lock(run: Path) -> None:
    with locked(run, read_only=True):
        assert run_cli("verify", run).code == 0
        refused(run_cli("verify", run, "--repair"), 4, "in use by another run")


def test_a_run_that_is_not_finished(run: Path) -> None:
    for name in ("summary.json", "manifest.jsonl", "groups/00000.json"):
        (run / name).unlink()
    ran = run_cli("verify", run)
    assert (ran.code, "sound, but not finished" in ran.out) == (1, True)
    for name in ("images", "prototypes", "plan.json"):
        shutil.rmtree(run / name) if name != "plan.json" else (run / name).unlink()
    assert run_cli("verify", run).code == 1


def test_what_cannot_be_verified(run: Path, tmp_path: Path) -> None:
    refused(run_cli("verify", tmp_path / "none"), 1, "no such run directory")
    refused(run_cli("verify", tmp_path), 4, "not a run of ours")
    with locked(run):
        refused(run_cli("verify", run), 4, "in use by another run")
    say("plan.json", "{}")(run)
    ran = run_cli("verify", run)
    assert (ran.code, f"damaged: {run}/plan.json" in ran.out) == (5, True)
    say("config.json", "{}")(run)
    refused(run_cli("verify", run), 5, "config.json: damaged")


def test_a_file_that_cannot_be_read_is_damaged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector: the rest is checked all the same."""
    read = files.read_regular

    def failing(path: Path) -> bytes:
        if path == run / IMAGE:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(files, "read_regular", failing)
    ran = run_cli("verify", run)
    assert (ran.code, f"damaged: {run / IMAGE} (cannot be read (Input/output error))" in ran.out) == (5, True)


def test_what_a_kill_left_in_an_unfinished_run_is_no_damage(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "groups" / "00000.json").unlink()
    (run / "images" / "bread" / ".tmp-1-00000.png").write_text("half")
    assert run_cli("verify", run).code == 1
