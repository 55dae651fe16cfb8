"""State files: JSON that names its kind and its version, and ends with a checksum.

{
 "schema": "plan",
 "version": 1,
 ...
 "sha256": "..."      of all the bytes before this line's comma
}

Everything that a later command trusts is written and read here; a file in which a single bit was changed is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4m_fast.errors import DamageError
from d4m_fast.storage import files

_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n')
_SEAL_BYTES = len(b',\n "sha256": ""\n}\n') + 64
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # a byte of a path that is not UTF-8
_HEAD = ("schema", "version")  # first, so that the first bytes of a file tell its kind
HEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of state file.

    Attributes:
        version: of its fields; files of another version are refused.
        remedy: what to do about a damaged one; {file} and {folder} stand for its path and the folder it is in.
    """

    name: str
    version: int
    remedy: str

    def damage(self, path: Path, reason: str) -> DamageError:
        """Return the error that says what is wrong with a file of this kind."""
        advice = self.remedy.format(file=path, folder=path.parent)
        return DamageError(f"{path}: damaged ({reason}); {advice}", reason)

    def heads(self, start: bytes) -> bool:
        """Return whether the first bytes of a file, `HEAD_BYTES` or more, say that it is of this kind."""
        return start.startswith(f'{{\n "schema": "{self.name}",'.encode())

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Turn the operating system's refusal to read a file of this kind into one line.

        Raises:
            PreflightError: it may be readable another time, or to another user.
            DamageError: it will not.
        """
        try:
            yield
        except OSError as error:
            files.refuse_machine_error(path, error)
            raise self.damage(path, str(error.strerror)) from error


_NEW_RUN = "start a new run in another --out"
_REPAIR = "d4m-fast verify --repair has it made again"
_ENCODE = "remove {folder} and run again to encode anew"
_EXPORT = "remove {folder} and run d4m-fast export again"
CONFIG = Schema("config", 1, _NEW_RUN)
PLAN = Schema("plan", 2, _REPAIR)
GROUP = Schema("group", 1, _REPAIR)
SUMMARY = Schema("summary", 2, _REPAIR)
SHARD = Schema("shard", 1, "remove {file} and run the shard again")
LATENTS = Schema("latents", 1, _ENCODE)
INDEX = Schema("index", 1, "remove {file} and run again to index anew")
CERTIFICATE = Schema("certificate", 1, _EXPORT)
TEACHING = Schema("teaching", 1, "remove {folder} and teach again")
EVALUATION = Schema("evaluation", 2, "remove {file} and evaluate again")
LABELS = Schema("soft labels", 1, "remove {folder} and evaluate again")
STUDENT = Schema("student", 1, "remove {file} and evaluate again")
STEP = Schema("certification step", 1, "remove {file} and run d4m-fast certify again")
REFERENCE = Schema("reference", 1, "remove {folder} and run d4m-fast certify again")
OUTPUT = Schema("output", 1, "remove {folder} and convert again")
MACHINE = Schema("machine certificate", 1, "run d4m-fast certify again")


def write_state(path: Path, schema: Schema, fields: Mapping[str, Any]) -> None:
    """Write a state file whole, durably, or not at all.

    Args:
        fields: plain JSON values; "schema", "version" and "sha256" are added.

    Raises:
        PreflightError: no space, no permission, a read-only file system.
    """
    files.write_bytes(path, _sealed(schema, fields))


def publish_state(path: Path, schema: Schema, fields: Mapping[str, Any]) -> bool:
    """Write a state file where there is none of its name; returns whether this call did. Else as `write_state`."""
    return files.publish_bytes(path, _sealed(schema, fields))


def _sealed(schema: Schema, fields: Mapping[str, Any]) -> bytes:
    # The checksum is of the bytes before it, not of the values, so that it needs no agreed form of JSON.
    text = _text({"schema": schema.name, "version": schema.version, **fields}, indent=1)
    body = text.removesuffix("\n}").encode()
    return b'%s,\n "sha256": "%s"\n}\n' % (body, hashlib.sha256(body).hexdigest().encode())


def read_state(path: Path, schema: Schema) -> dict[str, Any] | None:
    """Return the fields of a state file; None if there is no file.

    Raises:
        DamageError: its bytes are not those that were written, or it is another kind of file.
        PreflightError: the system would not let it be read.
    """
    if not files.is_there(path):
        return None
    with schema.reading(path):
        data = files.read_regular(path)
    return _fields(path, schema, data)


def require_state(path: Path, schema: Schema) -> dict[str, Any]:
    """Return the fields of a state file that must be there; errors are those of `read_state`."""
    fields = read_state(path, schema)
    if fields is None:
        raise schema.damage(path, "it is missing")
    return fields


def read_json(path: Path) -> Any:
    """Return the value in a JSON file that is not d4m-fast's own, and so has no checksum.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(files.read_regular(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_lines(values: Iterable[dict[str, Any]]) -> bytes:
    """Return one JSON value per line, as UTF-8."""
    return "".join(_text(value) + "\n" for value in values).encode()


def _text(value: Any, indent: int | None = None) -> str:
    """Return JSON that can be encoded as UTF-8: of the characters beyond ASCII, only lone surrogates are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _fields(path: Path, schema: Schema, data: bytes) -> dict[str, Any]:
    """Return the fields in the bytes of a state file, after all checks."""
    seal = _SEAL.fullmatch(data, max(0, len(data) - _SEAL_BYTES))
    body = data[:-_SEAL_BYTES]
    if seal is None:
        raise schema.damage(path, "it does not end with its checksum, or is of an older d4m-fast")
    if hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise schema.damage(path, "it is not what its checksum says")
    try:
        fields: dict[str, Any] = json.loads(body + b"}")
    except (ValueError, RecursionError) as error:  # the checksum fits, so another program wrote it
        raise schema.damage(path, f"it is not JSON ({error})") from error
    # Checked after the checksum: a damaged name is damage, not another kind of file.
    kind = tuple(fields.pop(name, None) for name in _HEAD)
    if kind != (schema.name, schema.version):
        raise schema.damage(path, f"it is {kind[0]!r} of version {kind[1]}, not {schema.name!r} of {schema.version}")
    return fields
