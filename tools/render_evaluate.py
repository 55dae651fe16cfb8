"""Tables that the code knows, in docs/evaluate.md and README.md, between `<!-- code:NAME begin -->` and `... end -->`.

python tools/render_evaluate.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import page_tables  # noqa: E402
from page_tables import markdown  # noqa: E402

from d4m_fast.arms.names import ARMS, Arm  # noqa: E402
from d4m_fast.config.plan import IMAGENET_CLASSES, IMAGENET_IMAGES, PlanConfig  # noqa: E402
from d4m_fast.evaluation.protocol_table import protocol_rows, source_lines  # noqa: E402
from d4m_fast.evaluation.protocols import PROTOCOLS, Protocol  # noqa: E402
from d4m_fast.planning.calculate import calculate  # noqa: E402

PAGES = (ROOT / "docs" / "evaluate.md", ROOT / "README.md")
KIND = "code"
BUDGETS = (10, 50, 100, 200)  # images per class of the paper's tables
LABELS = (("d4m", None, None), ("d4m", 30, None), ("d4m", 30, 10), ("rded", 30, 10))  # protocol, epochs, top k


def protocols() -> str:
    """Return the fields of every protocol, and where they were read."""
    table = markdown(("field", *PROTOCOLS), protocol_rows(PROTOCOLS.values()))
    return "\n".join([table, "", *map(_source_item, source_lines(PROTOCOLS.values()))])


def _source_item(line: str) -> str:
    """Return a line of sources as an item of a list, its name or its fields in backticks."""
    names, _, source = line.partition(": ")
    indent = names[: len(names) - len(names.lstrip())]
    return f"{indent}- {', '.join(f'`{name}`' for name in names.strip().split(', '))}: {source}"


def arms() -> str:
    """Return what each arm is, and what it needs."""
    return markdown(("arm", "what it is", "needs"), map(_arm_row, ARMS.values()))


def _arm_row(arm: Arm) -> tuple[str, str, str]:
    return f"`{arm.name}`", arm.meaning, ", ".join(NEEDS[need] for need in sorted(arm.needs))


NEEDS = {"records": "a run of d4m-fast", "model": "its model", "teacher": "a teacher"}


def label_bytes() -> str:
    """Return the bytes of stored labels of ImageNet-1K, which are calculated."""
    head = ("protocol", "stored epochs", "logits kept", "bytes per label", *(f"IPC {ipc}" for ipc in BUDGETS))
    return markdown(head, [_label_row(*recipe) for recipe in LABELS])


def _label_row(name: str, epochs: int | None, top_k: int | None) -> tuple[str, ...]:
    protocol = PROTOCOLS[name]
    count = protocol.stored_epochs if epochs is None else epochs
    size = bytes_of_label(protocol, IMAGENET_CLASSES, top_k)
    totals = (f"{count * IMAGENET_CLASSES * ipc * size / 1e9:,.3g} GB" for ipc in BUDGETS)
    return name, str(count), "all" if top_k is None else str(top_k), f"{size:,}", *totals


def bytes_of_label(protocol: Protocol, classes: int, top_k: int | None) -> int:
    """Return the bytes of one image's stored label in one epoch, as `evaluation/label_store.py` writes it."""
    logits = 2 * classes if top_k is None else (2 + 2) * top_k + 2  # fp16; with int16 indices, and the rest's mass
    views = 1 + 2 * (protocol.patches > 1) + 8 * (protocol.crop is not None) + 4 * (protocol.shift > 0)
    place_and_mix = 4 + 4 + 8  # place in the epoch, partner, box
    return logits + views + place_and_mix


def imagenet() -> str:
    """Return what the paper's table takes on a GPU, which is calculated."""
    protocol, lines = PROTOCOLS["d4m"], list[list[str]]()
    size = protocol.stored_epochs * bytes_of_label(protocol, IMAGENET_CLASSES, None)
    for ipc in BUDGETS:
        # As README.md's command has them; all else is `plan`'s own default.
        config = PlanConfig(
            model="sd15", images=IMAGENET_IMAGES, classes=IMAGENET_CLASSES, gpu="h100", ipc=ipc, students=6
        )
        _, figures, _ = calculate(config)
        hours = [f"{figure.low:.2g}-{figure.high:.2g}" for figure in figures if figure.name == "GPU-hours"]
        lines.append([str(ipc), *hours, f"{IMAGENET_CLASSES * ipc * size / 1e9:,.3g} GB"])
    return markdown(("IPC", "encoding", "generation", "students", "labels"), lines)


TABLES: Mapping[str, Callable[[], str]] = {
    "arms": arms,
    "imagenet": imagenet,
    "label-bytes": label_bytes,
    "protocols": protocols,
}


def render(text: str) -> str:
    """Return a page with every table made anew; errors are those of `page_tables.render`."""
    return page_tables.render(text, KIND, TABLES)


if __name__ == "__main__":
    for page in PAGES:
        page_tables.rewrite(page, render)
