"""Checks of the prompts against what a model's text encoder takes and knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from d4m_fast.engine.model import Model
from d4m_fast.engine.networks import TextEncoder
from d4m_fast.errors import ModelError, UsageError
from d4m_fast.sources.records import ClassInfo
from d4m_fast.storage.state import read_json
from d4m_fast.wording import some

# A file in a model's directory that lists the prompts it was trained on, where these are all it knows. It is no part of
# the model's hash, because it does not change the images.
KNOWN_PROMPTS = "prompts.json"


def require_known_prompts(model: Model, classes: Sequence[ClassInfo]) -> None:
    """Refuse prompts that a model which lists the prompts it knows does not list.

    Raises:
        UsageError: one is not listed, case and spaces aside.
        ModelError: the list cannot be read.
    """
    file = model.path / KNOWN_PROMPTS
    if not os.path.lexists(file):  # a link that leads nowhere is a list that cannot be read, not a missing one
        return
    listed_prompts = {_normalized(prompt): prompt for prompt in _read_prompts(file)}
    unlisted = list[ClassInfo]()
    for class_info in classes:
        if _normalized(class_info.prompt) not in listed_prompts:
            unlisted.append(class_info)
    if unlisted:
        first, names = unlisted[0], ", ".join(listed_prompts.values())
        raise UsageError(
            f"--model {model.name}: knows {len(listed_prompts)} prompts ({names}), and not {first.prompt!r} of class"
            f" {first.folder} ({len(unlisted):,} of {len(classes):,} classes): its images would show what it knows;"
            " take another --model, or give --allow-unknown-prompts"
        )


def _read_prompts(file: Path) -> list[str]:
    try:
        value = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as a list of prompts ({error})") from error
    prompts = value.get("prompts") if isinstance(value, dict) else None
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ModelError(f'{file}: not {{"prompts": ["...", ...]}}')
    return prompts


def require_whole_prompts(encoder: TextEncoder, classes: Sequence[ClassInfo], negative_prompt: str | None) -> None:
    """Refuse prompts that the tokenizer cuts, and different ones that it does not tell apart.

    Args:
        negative_prompt: None where it is not used.

    Raises:
        UsageError: one is longer than the text encoder takes, or two classes become the same to it.
    """
    folders: dict[str, str] = {}  # of the first class with each prompt
    for class_info in classes:
        folders.setdefault(class_info.prompt, class_info.folder)
    prompts = list(folders)
    most = encoder.most_tokens
    for prompt, count in zip(prompts, encoder.count_tokens(prompts), strict=True):
        if count > most:
            raise UsageError(
                f"class {folders[prompt]}: its prompt has {count} tokens, the text encoder takes {most} and would cut"
                f" the rest ({prompt[:40]!r}...); shorten it, with --prompts FILE"
            )
    if negative_prompt is not None and (count := encoder.count_tokens([negative_prompt])[0]) > most:
        raise UsageError(f"--negative-prompt: has {count} tokens, the text encoder takes {most}; shorten it")
    prompt_of: dict[tuple[int, ...], str] = {}
    for prompt, ids in zip(prompts, encoder.token_ids(prompts).tolist() if prompts else [], strict=True):
        earlier = prompt_of.setdefault(tuple(ids), prompt)
        if _normalized(earlier) != _normalized(prompt):
            names = some([folders[earlier], folders[prompt]])
            raise UsageError(f"classes {names}: {earlier!r} and {prompt!r} are the same to the tokenizer; reword one")


def _normalized(prompt: str) -> str:
    return " ".join(prompt.casefold().split())
