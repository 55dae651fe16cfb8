"""Prompts of classes: from a file, from a table of labels, or from the names that the data has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from d4m_fast.characters import invisible_character
from d4m_fast.errors import DataError, UsageError
from d4m_fast.sources.class_names import WNID, imagenet_labels, spoken_folders
from d4m_fast.sources.prompts.file import read_prompts
from d4m_fast.sources.prompts.order import Classes
from d4m_fast.sources.records import ClassInfo
from d4m_fast.wording import some

OFFICIAL = "official"


@dataclass(frozen=True, slots=True)
class Prompts:
    """The value of `--prompts`, and whether anybody will read the prompts.

    Attributes:
        given: None, "official" or a file; see `resolve_prompts`.
        needed: False where only classes and images count: a class without a known name is then called by its folder.
    """

    given: str | None = None
    needed: bool = True


def resolve_prompts(folders: Sequence[str], names: Sequence[str] | None, prompts: str | None) -> list[str]:
    """Return one prompt per class, in the order of `folders`.

    Without `prompts`: the class names, or the folder names (`_` read as a space, numbers before them left out), or the
    ImageNet label lines when every folder is a WordNet id. Two classes may share a prompt, as ImageNet's do.

    Args:
        folders: class folders, in class order.
        names: class names in the same order, for data sets that have them; None for a directory of folders.
        prompts: None, "official" (the label lines of the published D4M code, its slips included), or the path of a
            file that `prompts.file.read_prompts` reads.

    Raises:
        UsageError: "official" for classes that are not WordNet ids.
        DataError: the file does not fit the classes, some folders are WordNet ids, or have one before their name, and
            others do not, or one is not of ImageNet-1K, or a prompt has characters that cannot be seen.
    """
    if prompts is not None and prompts != OFFICIAL:
        return read_prompts(Path(prompts), Classes(folders, names))
    wnids = list(filter(WNID.fullmatch, folders)) if names is None else []
    if prompts == OFFICIAL and (not wnids or len(wnids) < len(folders)):
        raise UsageError("--prompts official: only for ImageNet class folders (n01440764, ...); give a file instead")
    if wnids:
        return _imagenet_prompts(folders, wnids, official=prompts == OFFICIAL)
    texts = spoken_folders(folders) if names is None else [name.replace("_", " ") for name in names]
    for text in texts:
        character = invisible_character(text)
        if character is not None:
            raise DataError(f"class {text!a}: its name has {character}; rename it or give --prompts FILE")
    return texts


def class_infos(folders: Sequence[str], names: Sequence[str] | None, prompts: Prompts) -> tuple[ClassInfo, ...]:
    """Return one record per class, ids counted from 0; arguments and errors are those of `resolve_prompts`."""
    nameless = names is None and prompts.given is None and not prompts.needed
    texts = folders if nameless else resolve_prompts(folders, names, prompts.given)
    pairs = zip(folders, texts, strict=True)
    return tuple(ClassInfo(i, folder, text) for i, (folder, text) in enumerate(pairs))


def require_named(place: str, folders: Collection[str], prompts: Prompts) -> None:
    """Refuse classes that are but numbers, where their prompts are needed and not given."""
    if prompts.given is None and prompts.needed:
        raise DataError(
            f"{place}: {len(folders)} classes (labels {min(folders)} to {max(folders)}) and no names for them; give"
            f" --prompts FILE with {len(folders)} lines, the prompts in the order of the labels"
        )


def shared_prompts(classes: Iterable[ClassInfo]) -> dict[str, list[str]]:
    """Return the prompts that stand for several classes, and the folders of these."""
    folders: dict[str, list[str]] = {}
    for class_info in classes:
        folders.setdefault(class_info.prompt, []).append(class_info.folder)
    return {prompt: sharing for prompt, sharing in folders.items() if len(sharing) > 1}


def _imagenet_prompts(folders: Sequence[str], wnids: Sequence[str], *, official: bool) -> list[str]:
    """Return the label lines of folders that are WordNet ids, some of them at least."""
    known_wnids = set(wnids)
    odd_folders = [folder for folder in folders if folder not in known_wnids]
    if odd_folders:
        verb = "is not" if len(odd_folders) == 1 else "are not"
        raise DataError(
            f"{len(wnids):,} of {len(folders):,} folders are WordNet ids; {some(odd_folders)} {verb}: remove it or give"
            " --prompts FILE"
        )
    table = imagenet_labels(official=official)
    unknown = [folder for folder in folders if folder.lower() not in table]
    if unknown:
        raise DataError(f"{some(unknown)}: no ImageNet-1K class, so no label is known; give them with --prompts FILE")
    return [table[folder.lower()] for folder in folders]
