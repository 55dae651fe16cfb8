"""Pages of the site that lie elsewhere or are made: a hook of MkDocs, which mkdocs.yml names.

The README is the home page; every command has a page of its options, read from the command line itself; the notebook
is shown with its outputs.
"""

from __future__ import annotations

import html
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from d4m_fast.cli import cli
from d4m_fast.config.fields import Group

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "index.md": "README.md",
    "changes.md": "CHANGELOG.md",
    "bundled-model.md": "d4m_fast/assets/README.md",
    "CITATION.cff": "CITATION.cff",
}
# Links of the pages, as they are in the repository -> as they are in the site; the longer ones first.
LINKS = {
    "](../d4m_fast/assets/README.md": "](bundled-model.md",
    "](CHANGELOG.md": "](changes.md",
    "](notebook.ipynb": "](notebook.md",
    "](docs/": "](",
}
CLASSES = re.compile(r' class="[^"]*"')  # of a table of pandas, whose style is the notebook's


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages of options in the navigation."""
    pages = [{f"d4m-fast {name}": f"options/{name}.md"} for name in cli.commands]
    assert config.nav is not None
    for entry in config.nav:
        if "Options" in entry:
            entry["Options"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for page, source in SOURCES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for name, command in cli.commands.items():
        files.append(File.generated(config, f"options/{name}.md", content=options_page(name, command)))
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    files.append(File.generated(config, "notebook.md", content=notebook_page(notebook)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to where their targets are in the site."""
    for link, target in LINKS.items():
        markdown = markdown.replace(link, target)
    return markdown


def options_page(name: str, command: click.Command) -> str:
    """Return the page of a command: its help, and a table of each group of its options, as `--help` has them."""
    with command.make_context(
        name, [], parent=click.Context(cli, info_name="d4m-fast"), resilient_parsing=True
    ) as context:
        usage = command.get_usage(context).removeprefix("Usage: ")
        described, _, examples = str(command.help).partition("\b\n")
        records = defaultdict[Group, list[tuple[str, str]]](list)
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and isinstance(parameter, click.Option):
                records[getattr(parameter, "group", Group.OUTPUT)].append(record)
    lines = [f"# d4m-fast {name}", "", "```", usage, "```", "", described.strip(), ""]
    if examples:
        lines += ["```", *(line.strip() for line in examples.splitlines() if line.strip() != "Examples:"), "```", ""]
    for group in Group:
        if records[group]:
            lines += [f"## {group}", "", "| option | meaning |", "|---|---|"]
            lines += [f"| {_code(names)} | {_cell(text)} |" for names, text in records[group]]
            lines.append("")
    return "\n".join(lines)


def _code(names: str) -> str:
    return f"<code>{html.escape(names).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;").replace("*", r"\*")


def notebook_page(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown, with its outputs."""
    lines = list[str]()
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
        else:
            lines += ["```python", source, "```", ""]
            for output in cell["outputs"]:
                lines += [*_shown(output), ""]
    return "\n".join(lines)


def _shown(output: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of an output, in the richest of its forms."""
    data = output.get("data", {})
    if "image/png" in data:
        yield f"![the cell's image](data:image/png;base64,{''.join(data['image/png']).strip()})"
    elif "text/html" in data:
        table = re.search(r"<table.*</table>", "".join(data["text/html"]), re.DOTALL)
        assert table is not None
        yield CLASSES.sub("", table[0]).replace(' border="1"', "")
    else:
        yield from ("```text", "".join(output.get("text", data.get("text/plain", ""))).rstrip(), "```")
