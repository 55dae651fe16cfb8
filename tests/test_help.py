"""`--help`, messages about misspelt words, and completion: all of them made of the fields of the configs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from driving import environment, one_line, run_cli

from d4m_fast import cli
from d4m_fast.config.certify import CertifyConfig
from d4m_fast.config.convert import ConvertConfig
from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.config.export import ExportConfig
from d4m_fast.config.fields import Group, flag_of, settings_of
from d4m_fast.config.plan import PlanConfig
from d4m_fast.config.profile import ProfileConfig
from d4m_fast.config.teach import TeachConfig
from d4m_fast.errors import UsageError
from d4m_fast.options import config_of

COMMANDS = sorted(cli.cli.commands)
CONFIGS: dict[str, Any] = {
    "distill": DistillConfig,
    "convert": ConvertConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "certify": CertifyConfig,
    "plan": PlanConfig,
    "profile": ProfileConfig,
    "teach": TeachConfig,
}
ARGUMENTS = {
    "convert": ["run", "--to", "parquet", "--out", "out"],
    "evaluate": ["run"],
    "teach": ["images"],
}
FILES = ("imagenet/", "their-images", "stable-diffusion-v1-5")
"""In examples: what only a user has."""
SECTION = re.compile(r"^([A-Z][a-z]+):\n((?:  .*\n|\n)+)", re.M)


def sections(name: str) -> dict[str, str]:
    """Title -> text of the sections of a command's help, examples among its description's lines left out."""
    return dict(SECTION.findall(run_cli(name, "--help").out + "\n"))


def squeezed(text: str) -> str:
    """Text without blanks, wherever it was wrapped."""
    return "".join(text.split())


def rows(name: str) -> dict[str, str]:
    """Flag -> squeezed text of every option in a command's help."""
    found = re.findall(r"^  (?:-\w, )?(--[a-z-]+)(.*\n(?:    .*\n)*)", run_cli(name, "--help").out + "\n", re.M)
    return {flag: squeezed(text) for flag, text in found}


def examples(name: str) -> list[str]:
    lines = str(cli.cli.commands[name].help).split("Examples:")[1].splitlines()
    return [line.strip() for line in lines if line.strip()]


def test_help_loads_no_heavy_library() -> None:
    code = """
import sys
from d4m_fast.cli import cli
for args in (["--help"], ["--version"], *([name, "--help"] for name in cli.commands)):
    cli.main(args, standalone_mode=False)
print("LOADED", sorted({"torch", "numpy", "diffusers", "transformers", "PIL", "rich"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_in_one_section_and_the_everyday_ones_first(name: str) -> None:
    found = sections(name)
    titles = [title for title in found if title != "Examples"]
    assert titles == [group.value for group in Group if group.value in titles]
    for parameter in cli.cli.commands[name].params:
        if isinstance(parameter, click.Option):
            row = re.compile(rf"^  (-\w, )?{parameter.opts[-1]}\b", re.M)
            assert [title for title, text in found.items() if row.search(text)] == [parameter.group]  # type: ignore[attr-defined]


def test_distill_begins_with_five_everyday_options() -> None:
    flags = re.findall(r"^  (--[a-z]+)", sections("distill")["Options"], re.M)
    assert sorted(flags) == ["--data", "--engine", "--ipc", "--model", "--out"]


@pytest.mark.parametrize(("name", "config"), CONFIGS.items())
def test_help_shows_every_default_and_every_bound(name: str, config: Any) -> None:
    texts = rows(name)
    for field, described in settings_of(config):
        text, default = (
            texts[flag_of(field, described)],
            field.default if described.default_text is None else described.default_text,
        )
        if isinstance(default, tuple):
            default = ",".join(map(str, default))  # of no values there is nothing to show
        if isinstance(default, bool):
            default = flag_of(field, described).replace("--", "" if default else "no-")
        shown = f"[default: {default}" if isinstance(default, str | int | float) and default != "" else ""
        assert squeezed(shown) in text
        assert squeezed(described.range) in text


@pytest.mark.parametrize(("name", "config"), CONFIGS.items())
def test_the_config_alone_has_the_defaults(name: str, config: Any) -> None:
    """No option of a config has a default of its own: what is not given is None, and the config is as built bare."""
    made = cli.cli.commands[name]
    with made.make_context(name, ARGUMENTS.get(name, [])) as context:
        options = {field.name: context.params[field.name] for field, _ in settings_of(config)}
        assert {*options.values()} <= {None, ()}  # Click's own for an option that may be repeated
        assert config_of(config, context.params) == config()


@pytest.mark.parametrize("config", CONFIGS.values())
def test_every_setting_with_a_bound_is_checked_where_it_is_built(config: Any) -> None:
    for field, described in settings_of(config):
        beyond = [
            *([described.minimum - 1] if described.minimum is not None else []),
            *([described.maximum + 1] if described.maximum is not None else []),
            *(bound for bound in (described.above, described.below) if bound is not None),
            *([float("nan"), float("inf")] if isinstance(field.default, float) else []),
        ]
        for number in beyond:
            value = (number,) if isinstance(field.default, tuple) else number
            with pytest.raises(UsageError, match=f"^{flag_of(field, described)} must be {re.escape(described.range)}"):
                config(**{field.name: value})


def test_examples_in_the_help_parse() -> None:
    for name in COMMANDS:
        lines = examples(name)
        assert any(line.startswith(f"d4m-fast {name}") for line in lines)
        for line in lines:
            made, *arguments = shlex.split(line.split(" > ")[0])[1:]
            with cli.cli.commands[made].make_context(made, arguments) as context:
                if made in CONFIGS:
                    config_of(CONFIGS[made], context.params)


def runnable() -> Iterator[str]:
    """The examples that need nothing but the package, no GPU, and minutes; a run that they name is made first."""
    yield "d4m-fast distill --ipc 1 --steps 5 --out runs/demo"
    for name in ("distill", "convert", "evaluate", "teach", "plan", "export", "certify", "profile", "verify", "doctor"):
        for line in examples(name):
            takes_long = line == "d4m-fast certify"  # a minute for each stage of each engine
            if not takes_long and not any(words in line for words in (*FILES, "tensorrt", "docs/")):
                yield line


@pytest.mark.slow
def test_examples_in_the_help_run(tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    script(bin_folder)
    places = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    (tmp_path / "work").mkdir()
    for line in runnable():
        ran = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path / "work", env={**environment(), **places}, capture_output=True, text=True
        )
        slower = "--against" in line and ran.returncode == 1  # a machine that others use, too
        assert ran.returncode == 0 or slower, (line, ran.stderr)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("distil",), "Did you mean 'distill'?"),
        (("distill", "--sed", 1), "'--seed'"),
        (("distill", "--preset", "unpc"), "Did you mean 'unipc'?"),
        (("evaluate", "r", "--regime", "onlin"), "Did you mean 'online'?"),
        (("plan", "--gpu", "h10"), "Did you mean 'h100'?"),
        (("profile", "--stages", "unet,decod"), "Did you mean 'decode'?"),
        (("profile", "--engine", "tensort"), "Did you mean 'tensorrt'?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(args: tuple[object, ...], said: str) -> None:
    one_line(run_cli(*args), 2, said)


def test_a_word_that_is_near_to_none_is_not_guessed_at() -> None:
    ran = run_cli("distill", "--preset", "fastest")
    assert ran.code == 2
    assert "Did you mean" not in ran.err


@pytest.mark.parametrize(
    ("key", "said"), [("stesp", "Did you mean 'steps'?"), ("nonsense", "no such option: nonsense")]
)
def test_a_misspelt_option_in_a_file_is_answered_with_the_nearest(tmp_path: Path, key: str, said: str) -> None:
    (tmp_path / "d4m.toml").write_text(f"{key} = 3\n")
    one_line(run_cli("distill", "--config", tmp_path / "d4m.toml"), 2, said)


def test_a_file_names_options_as_flags_do_and_a_flag_can_take_a_switch_back(tmp_path: Path) -> None:
    (tmp_path / "d4m.toml").write_text('engine = "torch,onnx"\nbatches = "2,1"\nstages = "unet"\njson = true\n')
    with cli.cli.commands["profile"].make_context("profile", ["--config", str(tmp_path / "d4m.toml")]) as context:
        config = config_of(ProfileConfig, context.params)
        assert context.params["as_json"] is True
    assert (config.engines, config.batches, config.stages) == (("torch", "onnx"), (1, 2), ("unet",))
    (tmp_path / "plan.toml").write_text("stored-labels = true\n")
    given = ["--config", str(tmp_path / "plan.toml")]
    for flags, stored in ((given, True), ([*given, "--no-stored-labels"], False)):
        with cli.cli.commands["plan"].make_context("plan", flags) as context:
            assert config_of(PlanConfig, context.params).stored_labels is stored


def script(folder: Path) -> Path:
    """Write `d4m-fast` as an installer does: completion goes by the name that was typed."""
    folder.mkdir()
    file = folder / "d4m-fast"
    lines = (
        "from d4m_fast.__main__ import run",
        "if __name__ == '__main__':",
        "    run()",
    )  # processes are started, too
    file.write_text("\n".join((f"#!{sys.executable}", *lines, "")))
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("shell", "variables", "said"),
    [
        ("bash_source", {}, "complete -o nosort -F"),
        ("zsh_source", {}, "compdef"),
        ("fish_source", {}, "complete --no-files --command d4m-fast"),
        ("bash_complete", {"COMP_WORDS": "d4m-fast dist", "COMP_CWORD": "1"}, "plain,distill\n"),
        ("bash_complete", {"COMP_WORDS": "d4m-fast plan --calib", "COMP_CWORD": "2"}, "plain,--calibrate\n"),
        ("bash_complete", {"COMP_WORDS": "d4m-fast distill --preset un", "COMP_CWORD": "3"}, "plain,unipc\n"),
    ],
)
def test_completion_answers(tmp_path: Path, shell: str, variables: dict[str, str], said: str) -> None:
    ran = subprocess.run(
        [script(tmp_path / "bin")],
        env={**environment(), "_D4M_FAST_COMPLETE": shell, **variables},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert said in ran.stdout
