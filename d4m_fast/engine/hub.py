"""Download of models by their hub id: safetensors, configs and tokenizer of one commit, or the local cache's copy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4m_fast.engine.weights import HALF, WEIGHTS, has_full_precision
from d4m_fast.errors import ModelError

DEFAULT_REVISION = "main"
# The tokenizer's text files are its merges.
CONFIG_FILES = ("model_index.json", "*/*.json", "tokenizer/*.txt")
WEIGHT_FILES = tuple(f"{component}/*.safetensors" for component in WEIGHTS)
# Weights without the exponential moving average, and parts that img2img distillation does not use.
NEVER = ("*.non_ema*", "safety_checker/*", "feature_extractor/*")
HALF_FILES = (f"*.{HALF}.*", f"*.{HALF}-*")  # the latter are shards
_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit of a hub repository, on this machine."""

    path: Path
    commit: str


def is_hub_id(name: str) -> bool:
    """Return whether a name that is no directory may be one on the hub: "organisation/model"."""
    return _ID.fullmatch(name) is not None


def fetch(name: str, revision: str | None, *, weights: bool = True) -> Snapshot:
    """Download what is missing of a commit into huggingface_hub's cache; no pickles, no code.

    Weights of full precision are preferred; those in half precision are fetched for parts that have no others.

    Args:
        revision: a commit, tag or branch; None is "main" as it is now, or, without network, as the cache has it.
        weights: False for the configs alone.

    Raises:
        ModelError: no such repository or revision, no access, or neither network nor a complete copy in the cache.
    """
    patterns = [*CONFIG_FILES, *(WEIGHT_FILES if weights else ())]
    revision = DEFAULT_REVISION if revision is None else revision
    snapshot = _download(name, revision, patterns, [*NEVER, *HALF_FILES])
    half_patterns = []
    for component, stem in WEIGHTS.items():
        if not has_full_precision(snapshot.path / component, stem):
            # The config is there already, but huggingface_hub warns if nothing matches.
            half_patterns += [f"{component}/config.json"]
            half_patterns += [f"{component}/*.{HALF}*.safetensors", f"{component}/*.{HALF}*.json"]
    if weights and half_patterns:
        snapshot = _download(name, snapshot.commit, half_patterns, list(NEVER))
    return snapshot


def _download(name: str, revision: str, patterns: list[str], ignored: list[str]) -> Snapshot:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # The base error of whichever HTTP library this version of huggingface_hub uses.
    transport: Any = HfHubHTTPError.__bases__[0]
    local = "or give a local directory in diffusers format"
    try:
        path = snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=ignored)
    except RevisionNotFoundError as error:
        raise ModelError(f"{name}: no revision {revision!r} on the hub; choose another --revision, {local}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{name}: neither a directory here nor a model on the hub that you may read; check it, {local}"
        ) from error
    except (OSError, ValueError, transport) as error:
        raise ModelError(
            f"{name}: not a directory here, and revision {revision!r} is neither in the hub's cache nor to be had from"
            f" the hub ({type(error).__name__}); connect, {local}"
        ) from error
    return Snapshot(Path(path), Path(path).name)
