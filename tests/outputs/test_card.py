"""Dataset cards: YAML that loads to what was meant, Markdown that shows names as they are, licences that are known."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from driving import Finished
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from d4m_fast.config.convert import ConvertConfig
from d4m_fast.outputs.card import Loading, card, markdown
from d4m_fast.outputs.finished_run import FinishedRun, open_finished
from d4m_fast.outputs.licences import licence_of

NAMES = (
    *(
        "a | b",
        "<script>alert(1)</script>",
        "# not a heading",
        "[text](http://x)",
        "![x](y)",
        "`code`",
        "**bold** __x__",
    ),
    *("&amp; &lt;", "a\\b", "1. one", "- item", "~~gone~~", "$x$", "https://example.org", "@somebody", "日本 😀", "*"),
    *(
        "---",
        "yes",
        "null",
        "!!python/object:os.system",
        "{a: b}",
        "'",
        '"',
        ": #",
        "%TAG",
        "a\u2028b",
        "\x85",
        "\ufeffx",
    ),
)
LOADING = Loading(code="code", notes="notes", files="*")


class Text(HTMLParser):
    """Text of HTML, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(finished: Finished) -> FinishedRun:
    return open_finished(finished.run)


def with_options(run: FinishedRun, **options: Any) -> FinishedRun:
    return replace(run, identity={**run.identity, "options": {**run.identity["options"], **options}})


def text_of(run: FinishedRun, **options: Any) -> str:
    return card(run, ConvertConfig(**options), LOADING).decode()


def rendered(text: str) -> Text:
    return Text(MarkdownIt("gfm-like", {"linkify": False}).render(text.split("\n---\n", 1)[1]))


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(run: FinishedRun, name: str) -> None:
    """By markdown-it, which renders GitHub's Markdown; HTML stays text."""
    plain = rendered(text_of(with_options(run, negative_prompt="QQQ")))
    named = rendered(text_of(with_options(run, negative_prompt=name)))
    assert named.tags == plain.tags
    shown = name if name.isprintable() else name.encode("unicode_escape").decode()
    assert named.text == plain.text.replace("QQQ", shown)


@pytest.mark.parametrize("name", NAMES)
def test_headers_load_to_the_names(run: FinishedRun, name: str) -> None:
    info = {"features": [{"name": "label", "dtype": {"class_label": {"names": {"0": name, "1": "x"}}}}]}
    named = with_options(run, data=f"/data/{name}", image_size=16)
    text = card(named, ConvertConfig(license="mit"), replace(LOADING, info=info)).decode()
    header = yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert header["dataset_info"] == info
    assert header["pretty_name"] == f"{Path('/data', name).name}, distilled"
    assert header["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "*"}]}]


def test_the_hub_reads_the_card(run: FinishedRun) -> None:
    data = DatasetCard(text_of(run, license="cc-by-4.0"), ignore_metadata_errors=False).data
    assert data.get("license") == "cc-by-4.0"
    assert data.get("size_categories") == ["n<1K"]
    assert data.get("task_categories") == ["image-classification"]


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("bundled", "mit"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m"),
        ("stabilityai/stable-diffusion-2-1-base", "openrail++"),
        ("somebody/their-model", "unknown"),
        ("/models/stable-diffusion-v1-5/stable-diffusion-v1-5", "unknown"),
        ("/models/bundled", "unknown"),
    ],
)
def test_licences(run: FinishedRun, model: str, licence: str) -> None:
    made = with_options(run, model=model)
    assert licence_of(made.identity["options"]) == licence
    text = text_of(made)
    assert text.startswith(f"---\nlicense: {licence}\n")
    said = "is not known to d4m-fast" if licence == "unknown" else f"under the licence {markdown(licence)}"
    assert said in text
    assert text_of(made, license="cc0-1.0").startswith("---\nlicense: cc0-1.0\n")


def test_how_it_was_made(run: FinishedRun) -> None:
    """Model, data, options, seeds and versions, without a directory of the machine."""
    made = with_options(run, model="/home/me/secret/model-x", data="/home/me/secret/photos", prompts="/home/me/p.json")
    text = text_of(made)
    shown = rendered(text).text
    for words in ("model-x", "photos", "guidance", "seed", run.identity["model_sha256"], run.fingerprint, "torch"):
        assert words in shown
    assert "/home" not in text and "secret" not in text
    assert "D4M: Dataset Distillation" in text.replace("D\\^{}4M", "D4M")


def test_a_model_of_the_hub_has_its_commit(run: FinishedRun) -> None:
    text = text_of(with_options(run, model="them/model", revision="a" * 40))
    assert f"them/model, commit {'a' * 40}" in rendered(text).text


@pytest.mark.parametrize(
    ("count", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (50_000, "10K<n<100K"), (200_000, "100K<n<1M")],
)
def test_sizes_are_in_the_hubs_words(run: FinishedRun, count: int, category: str) -> None:
    text = text_of(replace(run, images=run.images[:1] * count))
    assert yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n"))["size_categories"] == [category]
