"""Choice of a model's weight files: those that diffusers' and transformers' `from_pretrained` would load.

    STEM.safetensors                  STEM.fp16.safetensors                 in one file
    STEM.safetensors.index.json       STEM.safetensors.index.fp16.json      or in the shards that an index names:
    STEM-00001-of-00002.safetensors   STEM.fp16-00001-of-00002.safetensors  called so, or otherwise

Full precision is preferred to half. Where other files could be meant as well, they must agree with those loaded.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from d4m_fast.engine.libraries import one_line
from d4m_fast.errors import ModelError
from d4m_fast.storage.state import read_json

WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}
HALF = "fp16"
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
_POINTER = b"version https://git-lfs.github.com/spec/"
_SAMPLE = 64  # values of a tensor that are compared: enough to tell two models apart without reading them whole


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that a component of a model is loaded from.

    Attributes:
        variant: the argument of `from_pretrained`; None is full precision.
        files: all that is read, an index included, sorted.
        unread: weights of this component that lie beside them, sorted.
    """

    folder: Path
    variant: str | None
    files: tuple[Path, ...]
    unread: tuple[Path, ...] = ()

    @property
    def tensors(self) -> tuple[Path, ...]:
        """The files without an index, which says nothing that they do not."""
        return tuple(file for file in self.files if file.suffix == ".safetensors")

    @property
    def line(self) -> str:
        """The log's line on them; empty where they are of full precision and nothing lies beside them."""
        if self.variant is None and not self.unread:
            return ""
        kind = "full-precision" if self.variant is None else self.variant
        beside = f", not {_names(self.unread)}" if self.unread else ""
        return f"{self.folder.name}: {kind} files ({_names(self.files)}){beside}"


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A complete set of weights: `name` is the single file or the index, `tensors` the single file or the shards."""

    name: Path
    tensors: tuple[Path, ...]


class _PointerError(ModelError):
    """The error at a file whose content git-lfs has not fetched."""


def choose_weights(folder: Path, stem: str) -> WeightFiles:
    """Return the files that a component of a model is loaded from.

    Args:
        folder: the component's, below the model's.
        stem: beginning of the files' names (`WEIGHTS`).

    Raises:
        ModelError: there are none, they are damaged or incomplete, or there are two sets that differ.
    """
    full = _candidate(folder, stem, None)
    try:
        half = _candidate(folder, stem, HALF)
    except _PointerError:
        if full is None:
            raise
        half = None  # a clone without all of its large files; these are not needed
    if full is not None and half is not None:
        _require_agreement(full, half, rounded=True)
    candidate, variant = (half, HALF) if full is None else (full, None)
    if candidate is None:
        raise _absence(folder, stem)
    files = {candidate.name, *candidate.tensors}
    unread = set(folder.glob(f"{stem}*.safetensors")) - files
    return WeightFiles(folder, variant, tuple(sorted(files)), tuple(sorted(unread)))


def has_full_precision(folder: Path, stem: str) -> bool:
    """Return whether any file of full precision is there, whole or not."""
    names = (_file(stem, None), _index(stem, None))
    return any(os.path.lexists(folder / name) for name in names) or bool(_shards(folder, stem, None))


def _candidate(folder: Path, stem: str, variant: str | None) -> _Candidate | None:
    """Return what `from_pretrained` loads of a variant; None where it is not there."""
    file, single = folder / _file(stem, variant), None
    if os.path.lexists(file):
        with _open(file):
            single = _Candidate(file, (file,))
    sharded = _sharded(folder, stem, variant)
    if single is None or sharded is None:
        return sharded if single is None else single
    _require_agreement(single, sharded, rounded=False)
    # Where both are there, transformers loads the single file and diffusers the shards.
    return single if stem == WEIGHTS["text_encoder"] else sharded


def _sharded(folder: Path, stem: str, variant: str | None) -> _Candidate | None:
    index = folder / _index(stem, variant)
    if not os.path.lexists(index):
        _refuse_strays(folder, stem, variant)
        return None
    places = _read_index(index)
    shards = tuple(sorted({folder / name for name in places.values()}))
    for shard in shards:
        if not os.path.lexists(shard):
            raise ModelError(f"{index}: names {shard.name}, which is not there; add it or save the model again")
        indexed_names = {name for name, place in places.items() if place == shard.name}
        with _open(shard) as tensors:
            differing = indexed_names ^ set(tensors.keys())
        if differing:
            raise ModelError(
                f"{index}: does not fit {shard.name} ({min(differing)} is in one of them only); save the model again"
            )
    return _Candidate(index, shards)


def _file(stem: str, variant: str | None) -> str:
    return f"{stem}.safetensors" if variant is None else f"{stem}.{variant}.safetensors"


def _index(stem: str, variant: str | None) -> str:
    return f"{stem}.safetensors.index.json" if variant is None else f"{stem}.safetensors.index.{variant}.json"


def _shards(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """Return a variant's shards by their names, those of old versions of diffusers included."""
    number, stem = r"-\d+-of-\d+", re.escape(stem)
    names = f"{stem}{number}" if variant is None else f"{stem}(\\.{variant}{number}|{number}\\.{variant})"
    pattern = re.compile(rf"{names}\.safetensors")
    return sorted(file for file in folder.glob("*.safetensors") if pattern.fullmatch(file.name))


def _refuse_strays(folder: Path, stem: str, variant: str | None) -> None:
    """Refuse shards, and an index under an old name, where the index that belongs there is missing.

    `from_pretrained` would pass over some of them, and find others or not by the dots in the path.
    """
    index = _index(stem, variant)
    for name in (f"{stem}.safetensors.{variant}.index.json", f"{stem}.{variant}.safetensors.index.json"):
        if os.path.lexists(folder / name):
            raise ModelError(f"{folder / name}: an index under the name of old versions; rename it to {index}")
    strays = _shards(folder, stem, variant)
    if strays:
        raise ModelError(f"{strays[0]}: a shard without an index; add {index}, or save the model again")


def _read_index(file: Path) -> dict[str, str]:
    """Return the name of the shard that holds each tensor."""
    _require_content(file)
    try:
        value = read_json(file)
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({one_line(error)}); save the model again") from error
    places = value.get("weight_map") if isinstance(value, dict) and isinstance(value.get("metadata"), dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{file}: not an index (no metadata, or no weight_map of file names); save the model again")
    for name in places.values():
        # A name with a folder would be looked for elsewhere, and one with another ending be opened as a pickle.
        if Path(name).name != name or "\0" in name or not name.endswith(".safetensors"):
            raise ModelError(f"{file}: names {name!r}, which is no safetensors file beside it; save the model again")
    return places


def _open(file: Path) -> safe_open:
    """Open a safetensors file, which checks that its header fits its length."""
    _require_content(file)
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file}: cannot be loaded as safetensors ({one_line(error)}); get it or save the model again"
        ) from error


def _require_content(file: Path) -> None:
    """Refuse what is no file that can be read."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # tested first: to open a pipe would wait for ever
            raise ModelError(f"{file}: not a regular file; put the weights in its place")
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except FileNotFoundError as error:
        raise ModelError(f"{file}: a link to nothing; put the weights in its place") from error
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    if start == _POINTER:
        raise _PointerError(f"{file}: is a git-lfs pointer, not weights: run git lfs pull")


def _require_agreement(first: _Candidate, second: _Candidate, *, rounded: bool) -> None:
    """Refuse two sets of weights that differ in names, shapes or the first values of a tensor.

    Args:
        rounded: whether one of them may be the other in half precision.
    """
    with _slices(first) as first_slices, _slices(second) as second_slices:
        for name in sorted(first_slices.keys() | second_slices.keys()):
            difference: str | None = "is in one of them only"
            if name in first_slices and name in second_slices:
                difference = _difference(first_slices[name], second_slices[name], rounded)
            if difference is not None:
                raise ModelError(
                    f"{first.name} and {second.name.name}: either may be meant, and {name} {difference}; remove the one"
                    " that is not"
                )


def _difference(first: Any, second: Any, rounded: bool) -> str | None:
    """Say how a tensor of two sets of weights differs, as far as it is read; None if it agrees."""
    if first.get_shape() != second.get_shape():
        return "has another shape"
    same_type = first.get_dtype() == second.get_dtype()
    if not same_type and not rounded:
        return "is of another type"
    first_values, second_values = _first_values(first), _first_values(second)
    if not same_type:
        first_values, second_values = first_values.half(), second_values.half()
    if not first_values.float().allclose(second_values.float(), rtol=0, atol=0, equal_nan=True):
        return "has other values"
    return None


@contextmanager
def _slices(candidate: _Candidate) -> Iterator[dict[str, Any]]:
    """Yield the tensors of floating-point numbers by their names, unread.

    Others are no weights: old text encoders were saved with the numbers of their positions, new ones are not.
    """
    slices = dict[str, Any]()
    with ExitStack() as stack:
        for file in candidate.tensors:
            tensors = stack.enter_context(_open(file))
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_slice(name)
                if "F" in tensor.get_dtype():  # F32, F16, BF16
                    slices[name] = tensor
        yield slices


def _first_values(tensor: Any) -> Any:
    """Return the first elements, read with the rows that hold them."""
    shape = tensor.get_shape()
    rows = slice(1 + _SAMPLE // max(1, math.prod(shape[1:])))
    return tensor[rows if shape else ...].flatten()[:_SAMPLE]


def _absence(folder: Path, stem: str) -> ModelError:
    """Return the error at a folder without weights of either precision, which names the other weights there."""
    variants = sorted(folder.glob(f"{stem}*.safetensors"))
    if not variants and any(any(folder.glob(pattern)) for pattern in _PICKLES):
        return ModelError(
            f"{folder}: only pickled weights, which can run code when opened; save the model with safetensors"
        )
    beside = f"; {_names(variants)} is another variant" if variants else ""
    return ModelError(
        f"{folder.parent}: parts missing ({folder.name}/{_file(stem, None)}); a Stable Diffusion 1.x directory has them"
        f" all{beside}"
    )


def _names(files: tuple[Path, ...] | list[Path]) -> str:
    """Return a file's name; of several files that of the index or the first, and how many more there are."""
    first = min(files, key=lambda file: (file.suffix, file.name))
    return first.name if len(files) == 1 else f"{first.name} and {len(files) - 1} more"
