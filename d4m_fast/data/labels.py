"""The text that stands for a class in the prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from d4m_fast.data.characters import invisible_character
from d4m_fast.data.prompt_file import read_prompts
from d4m_fast.data.records import ClassInfo
from d4m_fast.data.wording import some
from d4m_fast.errors import DataError, UsageError

OFFICIAL = "official"
_WNID = re.compile("n[0-9]{8}")
_WNID_AND_NAME = re.compile("n[0-9]{8}[-_. ](.+)")  # Stanford Dogs: n02085620-Chihuahua
_NUMBER_AND_NAME = re.compile("([0-9]+)[.](.+)")  # CUB-200 and Caltech-256: 001.Black_footed_Albatross


@dataclass(frozen=True, slots=True)
class Prompts:
    """What `--prompts` says, and whether anybody will read the prompts.

    Attributes:
        given: None, "official" or a file; see `resolve_prompts`.
        needed: False where only classes and images count: a class without a known name is then called by its folder.
    """

    given: str | None = None
    needed: bool = True


def resolve_prompts(folders: Sequence[str], names: Sequence[str] | None, prompts: str | None) -> list[str]:
    """One prompt per class, in the order of `folders`.

    Without `prompts`: the class names, or the folder names (`_` read as a space, numbers before them left out), or the
    ImageNet label lines when every folder is a WordNet id. Two classes may share a prompt, as ImageNet's do.

    Args:
        folders: class folders, in class order.
        names: class names in the same order, for data sets that have them; None for a directory of folders.
        prompts: None, "official" (the label lines of the published D4M code, its slips included), or the path of a
            file that `prompt_file.read_prompts` reads.

    Raises:
        UsageError: "official" for classes that are not WordNet ids.
        DataError: the file does not fit the classes, some folders are WordNet ids and others are not, or one is not of
            ImageNet-1K, or a prompt has characters that cannot be seen.
    """
    if prompts is not None and prompts != OFFICIAL:
        return read_prompts(Path(prompts), folders)
    wnids = [folder for folder in folders if _WNID.fullmatch(folder)] if names is None else []
    if prompts == OFFICIAL and (not wnids or len(wnids) < len(folders)):
        raise UsageError("--prompts official: only for ImageNet class folders (n01440764, ...); give a file instead")
    if wnids:
        _require_only_wnids(folders, wnids)
        return _from_table(folders, official=prompts == OFFICIAL)
    texts = _folder_names(folders) if names is None else names
    return [_visible(text.replace("_", " ")) for text in texts]


def imagenet_labels(*, official: bool = False) -> dict[str, str]:
    """WordNet id -> label line of the 1,000 ImageNet-1K classes, in class order."""
    text = (resources.files("d4m_fast") / "assets" / "labels" / "imagenet-1k.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    return {wnid: other[0] if official and other else label for wnid, label, *other in rows}


def class_infos(folders: Sequence[str], names: Sequence[str] | None, prompts: Prompts) -> tuple[ClassInfo, ...]:
    """One record per class, ids counted from 0; arguments and errors are those of `resolve_prompts`."""
    nameless = names is None and prompts.given is None and not prompts.needed
    texts = folders if nameless else resolve_prompts(folders, names, prompts.given)
    return tuple(ClassInfo(i, folder, text) for i, (folder, text) in enumerate(zip(folders, texts, strict=True)))


def shared_prompts(classes: Iterable[ClassInfo]) -> dict[str, list[str]]:
    """Prompts that stand for several classes, and the folders of these."""
    folders: dict[str, list[str]] = {}
    for info in classes:
        folders.setdefault(info.prompt, []).append(info.folder)
    return {prompt: sharing for prompt, sharing in folders.items() if len(sharing) > 1}


def _require_only_wnids(folders: Sequence[str], wnids: Sequence[str]) -> None:
    others = [folder for folder in folders if folder not in set(wnids)]
    if others:
        verb = "is not" if len(others) == 1 else "are not"
        raise DataError(
            f"{len(wnids):,} of {len(folders):,} folders are WordNet ids; {some(others)} {verb}: remove it or give"
            " --prompts FILE"
        )


def _from_table(folders: Sequence[str], *, official: bool) -> list[str]:
    table = imagenet_labels(official=official)
    unknown = [folder for folder in folders if folder not in table]
    if unknown:
        raise DataError(f"{some(unknown)}: no ImageNet-1K class, so no label is known; give them with --prompts FILE")
    return [table[folder] for folder in folders]


def _folder_names(folders: Sequence[str]) -> Sequence[str]:
    """The folders without a WordNet id or a number before the name, where every folder has one of its own."""
    numbered = [_NUMBER_AND_NAME.fullmatch(folder) for folder in folders]
    if len({match[1] for match in numbered if match}) == len(folders):
        return [match[2] for match in numbered if match]
    named = [_WNID_AND_NAME.fullmatch(folder) for folder in folders]
    return [match[1] for match in named if match] if all(named) else folders


def _visible(text: str) -> str:
    character = invisible_character(text)
    if character is not None:
        raise DataError(f"class {text!a}: its name has {character}; rename it or give --prompts FILE")
    return text
