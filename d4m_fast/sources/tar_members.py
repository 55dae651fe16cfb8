"""Members of tar files, read off their headers: names, places and sizes; nothing is unpacked and no link followed.

Formats: POSIX.1-2001 (pax), GNU and the older ones, https://www.gnu.org/software/tar/manual/html_node/Standard.html.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from d4m_fast.errors import DataError

ReadAt = Callable[[int, int], bytes]  # offset, count -> bytes, fewer at the end of the file

BLOCK = 512
MOST_NAME_BYTES = 4096  # PATH_MAX of Linux
MOST_EXTENDED_BYTES = 1 << 20  # of an extended header; a name, and what a file system keeps beside it
_WINDOW = 1 << 14  # bytes read at once: the headers and labels of a sample lie side by side
_END = bytes(BLOCK)
_FILES = b"0\x007"  # regular, regular before POSIX, contiguous
_FOLDER, _LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL, _SPARSE = b"5LKxgS"
_KINDS = {ord("1"): "a link", ord("2"): "a link", ord("3"): "a device", ord("4"): "a device", ord("6"): "a pipe"}
_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x1f\x9d", "compress"),
    (b"\x5d\0\0", "lzma"),
    (b"PK\x03\x04", "zip"),
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar.

    Attributes:
        name: its path, "a/b.jpg", never absolute and without `..`.
        offset: of its bytes in the outermost file.
        kind: what it is where that is no regular file, "a link" for example; empty where it is one.
    """

    name: str
    offset: int
    size: int
    kind: str = ""


class Window:
    """Reader of short pieces, one behind the other, with few calls of the system."""

    def __init__(self, read_at: ReadAt) -> None:
        self._read_at = read_at
        self._start, self._data = 0, b""

    def __call__(self, offset: int, count: int) -> bytes:
        start = offset - self._start
        if start < 0 or start + count > len(self._data):
            self._start, self._data = offset, self._read_at(offset, max(count, _WINDOW))
            start = 0
        return self._data[start : start + count]


def members_of(read_at: ReadAt, start: int, stop: int, tar: str) -> Iterator[Member]:
    """Yield the members of the tar that lies between two offsets, folders and headers left out.

    Args:
        tar: what messages call it.

    Raises:
        DataError: it is compressed, cut short, damaged, or has a name that leads out of it.
    """
    return _Headers(read_at, start, stop, tar).members()


class _Headers:
    """Walk over the headers of a tar."""

    def __init__(self, read_at: ReadAt, start: int, stop: int, tar: str) -> None:
        self._read_at = read_at
        self._at, self._stop = start, stop
        self._tar = tar
        self._long_name: bytes | None = None  # of the next member
        self._records: dict[bytes, bytes] = {}

    def members(self) -> Iterator[Member]:
        """Yield the members; the walk ends at the end mark."""
        while True:
            header = self._read_at(self._at, BLOCK)
            if len(header) < BLOCK or self._at + BLOCK > self._stop:
                self._require_unpacked(header)
                raise self._error("ends without its end mark, as broken copies do; fetch it again")
            if header == _END:
                return
            self._check(header)
            size, self._at = self._size(header), self._at + BLOCK
            type_flag = header[156]
            if type_flag in (_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL):
                self._take_extended(type_flag, size)
            else:
                yield from self._member(header, type_flag, size)
                self._long_name, self._records = None, {}

    def _member(self, header: bytes, type_flag: int, size: int) -> Iterator[Member]:
        raw = self._raw_name(header)
        name = self._plain(raw)
        if any(key.startswith(b"GNU.sparse.") for key in self._records) or type_flag == _SPARSE:
            raise self._error(f"{name!a} is stored with holes (GNU sparse); make the tar without --sparse")
        size = self._extended_size(size)
        if type_flag in _FILES and not raw.endswith(b"/"):
            self._require_inside(name, size)
            yield Member(name, self._at, size)
            self._skip(size)
        elif type_flag in _KINDS:  # they have no bytes, whatever size they give
            yield Member(name, self._at, 0, _KINDS[type_flag])
        elif type_flag == _FOLDER or raw.endswith(b"/"):
            self._skip(size if type_flag in _FILES else 0)
        else:
            raise self._error(f"{name!a} is of kind {chr(type_flag)!a}, which is not read; make the tar anew")

    def _check(self, header: bytes) -> None:
        try:
            stored = int(header[148:156].strip(b" \0"), 8)
        except ValueError:
            stored = -1
        # The checksum itself counts as eight spaces.
        if stored != sum(header) - sum(header[148:156]) + 8 * 0x20:
            self._require_unpacked(header)
            raise self._error(f"no tar header at byte {self._at:,}; fetch it again")

    def _require_unpacked(self, header: bytes) -> None:
        packing = next((name for magic, name in _PACKED if header.startswith(magic)), None)
        if packing is not None:
            raise self._error(f"is compressed ({packing}), so no image in it can be found; uncompress it")

    def _size(self, header: bytes) -> int:
        field = header[124:136]
        if field[0] in (0x80, 0xFF):  # GNU: a binary number, for sizes of 8 GiB and more; 0xff is below zero
            size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
        else:
            size = _octal(field)
        if size < 0:
            raise self._error(f"no size in the header at byte {self._at:,}; fetch it again")
        return size

    def _extended_size(self, size: int) -> int:
        text = self._records.get(b"size")
        if text is None:
            return size
        if not text.isdigit() or len(text) > 18:
            raise self._error(f"no size in the extended header before byte {self._at:,}; fetch it again")
        return int(text)

    def _take_extended(self, type_flag: int, size: int) -> None:
        """Read an extended header, which is of the next member, or of all where it is global."""
        if size > MOST_EXTENDED_BYTES:
            raise self._error(f"an extended header of {size:,} bytes at byte {self._at:,}; make the tar anew")
        self._require_inside("an extended header", size)
        data = self._read_at(self._at, size)
        self._skip(size)
        if type_flag == _LONG_NAME:
            self._long_name = data.partition(b"\0")[0]
        elif type_flag == _EXTENDED:
            self._records = self._parse(data)
        elif type_flag == _GLOBAL and not {b"path", b"size"}.isdisjoint(self._parse(data)):
            raise self._error("a global header with a path or a size, which is not read; make the tar anew")

    def _parse(self, data: bytes) -> dict[bytes, bytes]:
        """Return the records of a pax header, each "length key=value" and a line end."""
        records, at = {}, 0
        while at < len(data) and data[at]:
            digits, space, _ = data[at : at + 20].partition(b" ")
            length = int(digits) if digits.isdigit() else 0
            key, equals, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
            if not space or not equals or data[at + length - 1 : at + length] != b"\n":
                raise self._error(f"an extended header before byte {self._at:,} is damaged; fetch it again")
            records[key] = value
            at += length
        return records

    def _raw_name(self, header: bytes) -> bytes:
        if b"path" in self._records:
            return self._records[b"path"]
        if self._long_name is not None:
            return self._long_name
        name = header[:100].partition(b"\0")[0]
        is_posix = header[257:263] == b"ustar\0"
        prefix = header[345:500].partition(b"\0")[0] if is_posix else b""
        return prefix + b"/" + name if prefix else name

    def _plain(self, raw: bytes) -> str:
        """Return a member's name without what changes nothing in it.

        Raises:
            DataError: it is absolute, goes up, is empty or too long.
        """
        name = raw.decode("utf-8", "surrogateescape")
        if len(raw) > MOST_NAME_BYTES:
            raise self._error(f"a name of {len(raw):,} bytes before byte {self._at:,}; make the tar anew")
        if raw.startswith(b"/") or b".." in raw.split(b"/") or not raw:
            raise self._error(f"the name {name!a} leads out of the tar, or nowhere; make the tar anew")
        if b"//" in raw or raw.startswith(b"./") or b"/./" in raw or raw.endswith((b"/", b"/.")):
            name = "/".join(part for part in name.split("/") if part not in ("", "."))
        return name

    def _require_inside(self, name: str, size: int) -> None:
        if self._at + size > self._stop:
            raise self._error(f"ends inside {name!a}; fetch it again")

    def _skip(self, size: int) -> None:
        self._at += -(-size // BLOCK) * BLOCK

    def _error(self, problem: str) -> DataError:
        return DataError(f"{self._tar}: {problem}")


def _octal(field: bytes) -> int:
    """Return an octal number, 0 of an empty field, -1 of what is none."""
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else -1
