"""Something else where a file should be: one line within a second, never a hang, never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from driving import HANGS, Finished, Ran, run_cli
from own_time import own_seconds

from d4m_fast.errors import DataError, ModelError
from d4m_fast.evaluation.teachers import load_teacher, teacher_folder
from d4m_fast.measure.gpus import GPUS
from d4m_fast.planning.calibrate import read_profile

SHAPES = ("[]", "5", "{}", "null", '"x"', "", "{", "\0", "\ufeff{}", "[" * 50_000, '{"a": 1e999}')


def directory(path: Path) -> None:
    path.mkdir()


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(here)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "directory": directory,
    "pipe": lambda path: os.mkfifo(path),
    "socket": listening,
    "device": link_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": link_to("nothing"),
}


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANGS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def assert_said(ran: Ran) -> None:
    """The command failed and said so in one line."""
    errors = [line for line in ran.err.splitlines() if line.lower().startswith("error:")]
    assert ran.code in (1, 2, 4, 5, 6), ran
    assert "Traceback" not in ran.err + ran.out, ran
    assert len(errors) == 1, ran


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "plan.json", "summary.json", "manifest.jsonl", "quarantine.jsonl", "preview.png"),
        *("groups/00000.json", "images/bread/00001.png", "prototypes/00001.safetensors", "evaluation/x.json"),
    ],
)
def test_in_a_run(finished: Finished, tmp_path: Path, name: str, special: str) -> None:
    run = Path(shutil.copytree(finished.run, tmp_path / "run"))
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    SPECIAL[special](run / name)
    start = own_seconds()
    ran = run_cli("verify", run)
    assert own_seconds() - start < 1
    assert ran.code in (4, 5), ran
    assert name in ran.out + ran.err
    assert "Traceback" not in ran.err + ran.out
    again = run_cli("distill", *finished.options, "--out", run, "--artifacts", finished.artifacts)
    if again.code != 0:
        assert_said(again)
    elif name.startswith("images/"):
        assert (run / name).read_bytes() == (finished.run / name).read_bytes()


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", ["index.json", "00001.npy"])
def test_in_latents(finished: Finished, tmp_path: Path, name: str, special: str) -> None:
    artifacts = Path(shutil.copytree(finished.artifacts, tmp_path / "art"))
    (file,) = artifacts.glob(f"latents/*/{name}")
    file.unlink()
    SPECIAL[special](file)
    assert_said(run_cli("distill", *finished.options, "--out", tmp_path / "run", "--artifacts", artifacts))


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", ["vae/config.json", "model_index.json", "unet/diffusion_pytorch_model.safetensors"])
def test_in_a_model(tiny_model: Path, finished: Finished, tmp_path: Path, name: str, special: str) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / name).unlink()
    SPECIAL[special](model / name)
    assert_said(run_cli("distill", *finished.options, "--model", model, "--out", tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize(
    "command",
    [
        ("distill", "--config", "FILE"),
        ("distill", "--prompts", "FILE"),
        ("distill", "--data", "FILE"),
        ("distill", "--model", "FILE"),
        ("distill", "--out", "FILE/run"),
        ("distill", "--artifacts", "FILE/art"),
        ("plan", "--calibrate", "FILE"),
        ("profile", "--against", "FILE"),
        ("certify", "--render", "FILE"),
        ("verify", "FILE"),
        ("evaluate", "FILE"),
    ],
)
def test_given_by_the_user(tmp_path: Path, command: tuple[str, ...], special: str) -> None:
    file = tmp_path / "given"
    SPECIAL[special](file)
    if special == "directory" and {"--data", "--model", "--out", "--artifacts"} & set(command):
        file.rmdir()
        file.write_text("a file")
    assert_said(run_cli(*(part.replace("FILE", str(file)) for part in command)))


WRONG: tuple[Any, ...] = (None, [], {}, "x", -1, True)


def mistyped(value: Any) -> Iterator[Any]:
    """The value with one key missing, or of another type."""
    if isinstance(value, dict):
        for key in value:
            yield {name: kept for name, kept in value.items() if name != key}
            yield from ({**value, key: wrong} for wrong in WRONG)
            yield from ({**value, key: below} for below in mistyped(value[key]))
    elif isinstance(value, list):
        yield from ([wrong, *value[1:]] for wrong in WRONG)
        for i, entry in enumerate(value):
            yield from ([*value[:i], below, *value[i + 1 :]] for below in mistyped(entry))


PROFILE = {
    "stages": {
        "unet": [{"engine": "torch", "batch": 8, "images_per_second": 3.0, "share_of_peak": 0.3, "gflops": 9.0}]
    },
    "machine": {"device": "NVIDIA H100 80GB HBM3"},
    "precision": "fp16",
    "engine_build_seconds": 3.0,
}


@pytest.mark.parametrize("command", [("plan", "--model", "bundled", "--calibrate"), ("certify", "--render")])
def test_wrong_shapes_of_json(tmp_path: Path, command: tuple[str, ...]) -> None:
    for text in SHAPES:
        (tmp_path / "x.json").write_text(text)
        assert_said(run_cli(*command, tmp_path / "x.json"))


def test_mistyped_profiles_calibrate_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for value in mistyped(PROFILE):
        file.write_text(json.dumps(value))
        with contextlib.suppress(DataError):
            shares, build = read_profile(file, GPUS["h100"], "auto", "fp16")
            assert all(0 < share.low <= 1 for share in shares.values())
            assert build is None or build.seconds >= 0


def test_mistyped_configs_of_a_teacher(tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(teacher_folder("bundled"), tmp_path / "teacher"))
    config = json.loads((teacher / "config.json").read_text())
    config["classes"] = config["classes"][:2]
    for value in mistyped(config):  # of two classes, where the weights have ten
        (teacher / "config.json").write_text(json.dumps(value))
        with pytest.raises(ModelError, match=r"config\.json|model\.safetensors"):
            load_teacher(teacher)


@pytest.mark.parametrize("text", SHAPES)
def test_wrong_shapes_of_a_config_given(tmp_path: Path, text: str) -> None:
    for name in ("x.json", "x.toml"):
        (tmp_path / name).write_text(text)
        if name == "x.json" or text in ("[]", "5", "null", '"x"', "{", "\0", "[" * 50_000):
            assert_said(run_cli("distill", "--config", tmp_path / name))


@pytest.mark.parametrize(
    ("name", "value"),
    [("ipc", "2.5"), ("steps", "4.0"), ("seed", "true"), ("threads", "1e400"), ("seed", "NaN"), ("strength", "true")],
)
def test_numbers_of_another_kind_in_a_config_given(tmp_path: Path, name: str, value: str) -> None:
    """Nothing is cut to an integer."""
    (tmp_path / "x.json").write_text(f'{{"options": {{"{name}": {value}}}}}')
    ran = run_cli("distill", "--config", tmp_path / "x.json", "--out", tmp_path / "run")
    assert_said(ran)
    assert (ran.code, f"--{name}" in ran.err) == (2, True), ran


@pytest.mark.parametrize("number", ["9" * 30, "9" * 10, "0", "-1"])
@pytest.mark.parametrize(
    "flag",
    [
        *("distill --threads", "export --threads", "profile --threads", "certify --threads", "plan --student-size"),
        *("export --static-batch", "export --max-batch", "profile --batches", "certify --batches"),
        *("evaluate . --width", "evaluate . --seeds", "evaluate . --workers"),
    ],
)
def test_numbers_that_no_library_takes(flag: str, number: str) -> None:
    ran = run_cli(*flag.split(), number)
    assert_said(ran)
    assert (ran.code, flag.split()[-1] in ran.err) == (2, True), ran


def test_a_run_s_config_with_another_digit_is_refused(finished: Finished, tmp_path: Path) -> None:
    """It would make another run, which would be whole."""
    config = tmp_path / "config.json"
    config.write_text((finished.run / "config.json").read_text().replace('"seed": 0', '"seed": 1'))
    ran = run_cli("distill", "--config", config, "--out", tmp_path / "run")
    assert_said(ran)
    assert ran.code == 5
    assert "config.json: damaged" in ran.err
