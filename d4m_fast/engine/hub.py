"""Models by their hub id: safetensors, configs and tokenizer of one commit, from the hub or from its local cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4m_fast.engine.weights import HALF, WEIGHTS, has_full_precision
from d4m_fast.errors import ModelError

DEFAULT_REVISION = "main"
CONFIG_FILES = ("model_index.json", "*/*.json", "tokenizer/*.txt")
WEIGHT_FILES = tuple(f"{part}/*.safetensors" for part in WEIGHTS)
NEVER = ("*.non_ema*", "safety_checker/*", "feature_extractor/*")
HALF_FILES = (f"*.{HALF}.*", f"*.{HALF}-*")  # the latter are shards
_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit of a hub repository, on this machine."""

    path: Path
    commit: str


def is_hub_id(name: str) -> bool:
    """Whether a name that is no directory may be one on the hub: "organisation/model"."""
    return _ID.fullmatch(name) is not None


def fetch(name: str, revision: str | None, *, weights: bool = True) -> Snapshot:
    """Download what is missing of a commit into huggingface_hub's cache; no pickles, no code.

    Weights are of full precision; in half precision come the parts that have no others.

    Args:
        revision: a commit, tag or branch; None is "main" as it is now, or, without network, as the cache has it.
        weights: False for the configs alone.

    Raises:
        ModelError: no such repository or revision, no access, or neither network nor a complete copy in the cache.
    """
    patterns = [*CONFIG_FILES, *(WEIGHT_FILES if weights else ())]
    revision = DEFAULT_REVISION if revision is None else revision
    snapshot = _download(name, revision, patterns, [*NEVER, *HALF_FILES])
    halves = [part for part, stem in WEIGHTS.items() if not has_full_precision(snapshot.path / part, stem)]
    if weights and halves:
        kinds = ("config.json", f"*.{HALF}*.safetensors", f"*.{HALF}*.json")  # huggingface_hub warns if nothing matches
        patterns = [f"{part}/{kind}" for part in halves for kind in kinds]
        snapshot = _download(name, snapshot.commit, patterns, list(NEVER))
    return snapshot


def _download(name: str, revision: str, patterns: list[str], ignored: list[str]) -> Snapshot:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    transport: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library that huggingface_hub uses
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
