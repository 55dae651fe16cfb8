"""The text that stands for a class in the prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from d4m_fast.data.records import ClassInfo
from d4m_fast.errors import DataError, UsageError

OFFICIAL = "official"
_WNID = re.compile(r"n[0-9]{8}")
_SHOWN = 5


def resolve_prompts(folders: Sequence[str], names: Sequence[str] | None, prompts: str | None) -> list[str]:
    """One prompt per class, in the order of `folders`.

    Without `prompts`: the class names, or the folder names (`_` read as a space), or the ImageNet label lines when
    every folder is a WordNet id. Two classes may share a prompt, as ImageNet's do.

    Args:
        folders: class folders, in class order.
        names: class names in the same order, for data sets that have them; None for a directory of folders.
        prompts: None, "official" (the label lines of the published D4M code, its slips included), or the path of a
            UTF-8 file with either `folder<TAB>prompt` lines in any order or one prompt per class in class order.

    Raises:
        UsageError: "official" for classes that are not WordNet ids.
        DataError: the file does not fit the classes, or a WordNet id is not one of ImageNet-1K.
    """
    if prompts is not None and prompts != OFFICIAL:
        return _from_file(Path(prompts), folders)
    wnids = names is None and len(folders) > 0 and all(_WNID.fullmatch(folder) for folder in folders)
    if prompts == OFFICIAL and not wnids:
        raise UsageError("--prompts official: only for ImageNet class folders (n01440764, ...); give a file instead")
    if wnids:
        return _from_table(folders, official=prompts == OFFICIAL)
    return [name.replace("_", " ") for name in (folders if names is None else names)]


def imagenet_labels(*, official: bool = False) -> dict[str, str]:
    """WordNet id -> label line of the 1,000 ImageNet-1K classes, in class order."""
    text = (resources.files("d4m_fast") / "assets" / "labels" / "imagenet-1k.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    return {wnid: other[0] if official and other else label for wnid, label, *other in rows}


def class_infos(folders: Sequence[str], names: Sequence[str] | None, prompts: str | None) -> tuple[ClassInfo, ...]:
    """One record per class, ids counted from 0; arguments and errors are those of `resolve_prompts`."""
    texts = resolve_prompts(folders, names, prompts)
    return tuple(ClassInfo(i, folder, text) for i, (folder, text) in enumerate(zip(folders, texts, strict=True)))


def some(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    listed = list(names)
    rest = f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + rest


def _from_table(folders: Sequence[str], *, official: bool) -> list[str]:
    table = imagenet_labels(official=official)
    unknown = [folder for folder in folders if folder not in table]
    if unknown:
        raise DataError(f"{some(unknown)}: no ImageNet-1K class, so no label is known; give them with --prompts FILE")
    return [table[folder] for folder in folders]


def _from_file(path: Path, folders: Sequence[str]) -> list[str]:
    lines = _lines(path)
    return _by_folder(path, lines, folders) if any("\t" in line for line in lines) else _in_order(path, lines, folders)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); --prompts takes 'official' or a file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    # Not splitlines(): it would also break at form feeds and Unicode separators inside a prompt.
    lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    _check_lines(path, lines)
    return lines


def _check_lines(path: Path, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"{path}: line {number} is blank; every line must be a prompt")
        if "\0" in line:
            raise DataError(f"{path}: line {number} is not text; --prompts takes a UTF-8 file")


def _in_order(path: Path, lines: list[str], folders: Sequence[str]) -> list[str]:
    if len(lines) != len(folders):
        count = f"{len(lines):,} prompts for {len(folders):,} classes"
        raise DataError(f"{path}: {count}; give one line per class, or folder<TAB>prompt lines")
    return [line.strip() for line in lines]


def _by_folder(path: Path, lines: Sequence[str], folders: Sequence[str]) -> list[str]:
    pairs = [_pair(path, number, line) for number, line in enumerate(lines, 1)]
    counts = Counter(folder for folder, _ in pairs)
    _refuse(path, "given twice", (folder for folder, n in counts.items() if n > 1))
    _refuse(path, "no such class folder", counts.keys() - set(folders))
    _refuse(path, "no prompt for", set(folders) - counts.keys())
    table = dict(pairs)
    return [table[folder] for folder in folders]


def _pair(path: Path, number: int, line: str) -> tuple[str, str]:
    folder, tab, prompt = line.partition("\t")
    if not tab or not prompt.strip() or "\t" in prompt:
        raise DataError(f"{path}: line {number} is not folder<TAB>prompt, as other lines are")
    return folder, prompt.strip()


def _refuse(path: Path, what: str, folders: Iterable[str]) -> None:
    wrong = sorted(folders)
    if wrong:
        raise DataError(f"{path}: {what}: {some(wrong)}")
