"""Tar files that are damaged, unsafe, compressed or ambiguous, and those of every format that is read."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from containers import File, add, tar_bytes, write_tar
from PIL import Image

from d4m_fast.errors import D4MError, DamageError, DataError, PreflightError
from d4m_fast.sources import decode as decoding
from d4m_fast.sources import tar_members
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.records import Source


def picture(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


FILES: list[File] = [(f"{folder}/{i}.png", picture(i)) for folder in ("cat", "dog") for i in range(3)]
ORIGINS = [name for name, _ in FILES]


def origins(source: Source) -> list[str]:
    return [item.origin for item in source.items]


def made(path: Path, *build: Callable[[tarfile.TarFile], None], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of FILES, with what is added to it."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in FILES:
            add(tar, name, data)
        for step in build:
            step(tar)
    return path


# What is read


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "name", ["x" * 90 + ".png", "y" * 60 + "/" + "x" * 80 + ".png", "z" * 120 + ".png", "猫/é.png"]
)
def test_names_of_every_format(tmp_path: Path, form: int, name: str) -> None:
    if form == tarfile.USTAR_FORMAT and name.startswith("z"):  # it has no room for this one
        name = name[30:]
    source = open_source(str(made(tmp_path / "a.tar", lambda tar: add(tar, f"dog/{name}", picture(9)), form=form)))
    assert f"dog/{name}" in origins(source) and len(source.items) == 7
    assert source.read(source.items[-1]).size == (5, 4)


def test_pax_headers_with_other_records(tmp_path: Path) -> None:
    def build(tar: tarfile.TarFile) -> None:
        add(tar, "dog/9.png", picture(9), pax_headers={"comment": "a=b\n12 c=d", "SCHILY.xattr.user.x": "1"}, mtime=1.5)

    assert "dog/9.png" in origins(open_source(str(made(tmp_path / "a.tar", build))))


def test_old_tars_without_a_magic(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(FILES))
    for at in (at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"):
        data[at + 257 : at + 512] = bytes(255)
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    (tmp_path / "a.tar").write_bytes(data)
    assert origins(open_source(str(tmp_path / "a.tar"))) == ORIGINS


def test_sizes_in_binary_and_in_extended_headers(tmp_path: Path) -> None:
    def forged(size: bytes, extended: int | None) -> bytes:
        data = bytearray(tar_bytes([("cat/1.png", picture())]))
        data[124:136] = size
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        if extended is None:
            return bytes(data)
        record = b"%d size=%d\n" % (len(b" size=\n%d" % extended) + 2, extended)
        return tar_bytes([("x", record)])[:1024].replace(b"0", b"0") and _extended(record) + bytes(data)

    size = len(picture())
    for data in (forged(b"\x80" + size.to_bytes(11, "big"), None), forged(b"0" * 11 + b"\0", size)):
        (tmp_path / "a.tar").write_bytes(data)
        source = open_source(str(tmp_path / "a.tar"))
        assert source.read(source.items[0]).size == (5, 4)


def _extended(record: bytes) -> bytes:
    """A pax header with one record."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    return header.tobuf() + record + bytes(-len(record) % 512)


def test_what_tools_leave_is_left_out(tmp_path: Path) -> None:
    def build(tar: tarfile.TarFile) -> None:
        for name in ("cat/._0.png", "cat/.DS_Store", "__MACOSX/cat/0.png", "dog/notes.txt", "README", "dog/x.heic"):
            add(tar, name, b"x")
        folder = tarfile.TarInfo("elk")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("cat/LINK")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)

    source = open_source(str(made(tmp_path / "a.tar", build)))
    assert origins(source) == ORIGINS
    said = " ".join(source.notes)
    for part in ("2 hidden", "1 .txt", "2 without extension", "1 .heic", "skipped folders: __MACOSX"):
        assert part in said, source.notes


# Labels


def shards(root: Path, *tars: list[File]) -> str:
    for number, files in enumerate(tars):
        write_tar(root / f"shard-{number:03d}.tar", files)
    return str(root)


def labelled(suffix: str, *labels: bytes) -> list[File]:
    files: list[File] = []
    for i, label in enumerate(labels):
        files += [(f"{i:04d}.{suffix}", label), (f"{i:04d}.png", picture(i))]
    return files


@pytest.mark.parametrize(
    ("suffix", "labels", "folders"),
    [
        ("cls", (b"1\n", b"0", b"2"), ["0", "1", "2"]),
        ("cls", (b"1", b"2", b"1"), ["1", "2"]),
        ("cls", (b"dog", b"cat", b"dog"), ["cat", "dog"]),
        ("txt", (b"a b", b"cat ", b"a b"), ["a b", "cat"]),
        ("json", (b'{"label": 1}', b'{"label": 0}', b'{"label": 0}'), ["0", "1"]),
        ("json", (b'{"caption": "x", "class": "dog"}', b'{"class_name": "cat"}', b'{"cls": "dog"}'), ["cat", "dog"]),
        ("txt", (b"a/b", b"..", b"a/b"), ["0", "1"]),
        ("txt", (b"x" * 300, b"NUL", b".hidden"), ["0", "1", "2"]),
        ("cls", (b"07", b"7", b"0"), None),
    ],
)
def test_labels_of_shards(tmp_path: Path, suffix: str, labels: tuple[bytes, ...], folders: list[str] | None) -> None:
    place = shards(tmp_path, labelled(suffix, *labels))
    if folders is None:
        with pytest.raises(DataError, match=r"no images of 6 of 8 classes \(1, 2, 3"):
            open_source(place, prompts_needed=False)
        return
    source = open_source(place, prompts_needed=False)
    assert [info.folder for info in source.classes] == folders
    assert all(info.prompt for info in source.classes)


def test_names_that_are_no_folders_are_prompts(tmp_path: Path) -> None:
    source = open_source(shards(tmp_path, labelled("txt", b"../../etc", b"CON/aux", b"../../etc")))
    assert [(info.folder, info.prompt) for info in source.classes] == [("0", "../../etc"), ("1", "CON/aux")]


def test_numbers_that_nobody_has_names_for(tmp_path: Path) -> None:
    place = shards(tmp_path / "a", labelled("cls", b"0", b"1"))
    with pytest.raises(DataError, match=r"2 classes \(labels 0 to 1\) and no names for them; give --prompts FILE"):
        open_source(place)
    (tmp_path / "prompts").write_text("a cat\na dog\n")
    source = open_source(place, prompts=str(tmp_path / "prompts"))
    assert [info.prompt for info in source.classes] == ["a cat", "a dog"]
    (tmp_path / "a" / "classnames.txt").write_text("a cat\na cat\n")
    source = open_source(place)
    assert [(info.folder, info.prompt) for info in source.classes] == [("0", "a cat"), ("1", "a cat")]
    (tmp_path / "a" / "classnames.txt").write_text("n01440764 tench\nn01443537 goldfish\n")
    assert [info.folder for info in open_source(place).classes] == ["n01440764", "n01443537"]
    (tmp_path / "a" / "classnames.txt").write_text("cat\n")
    with pytest.raises(DataError, match="the label 1, but names for 1 classes only"):
        open_source(place)


def test_imagenet_is_known_by_the_ids_in_its_names(tmp_path: Path) -> None:
    files: list[File] = []
    for label, wnid in ((7, "n01440764"), (3, "n01443537")):
        files += [(f"{wnid}_{label}.cls", str(label).encode()), (f"{wnid}_{label}.jpg", picture(label))]
    source = open_source(shards(tmp_path, files))
    assert [info.folder for info in source.classes] == ["n01440764", "n01443537"]
    assert origins(source) == ["n01440764/n01440764_7.jpg", "n01443537/n01443537_3.jpg"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("0.png", picture()), ("1.png", picture())], "nothing tells the class of 0.png"),
        ([("0.txt", b"cat"), ("0.png", picture()), ("1.png", picture())], r"1\.png has no \.txt file with its class"),
        ([("0.cls", b"-1"), ("0.png", picture())], "the label -1, which stands for no class"),
        ([("cat/0.png", picture()), ("1.png", picture())], r"1\.png is in no folder, others are"),
        ([("notes.txt", b"cat")], "no images in it"),
        ([("val/cat/0.png", picture()), ("val/dog/0.png", picture())], "has val/ but no train/"),
        ([("0.png", picture()), ("in.tar", b"")], "holds both images"),
    ],
)
def test_sets_whose_classes_are_not_told(tmp_path: Path, files: list[File], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_source(shards(tmp_path, files))


def test_what_is_said_of_one_class_and_of_several_kinds_of_files(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES[:3])
    assert open_source(str(path)).notes == ("one class only: cat",)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(DataError, match=r"files of several kinds \(\.parquet, \.tar\)"):
        open_source(f"{tmp_path}/a.{{tar,parquet}}")


def test_splits_of_shards(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("validation", 1)):
        write_tar(tmp_path / "a" / f"set-{split}-000.tar", [*FILES[:count], FILES[3]])
        write_tar(tmp_path / "b" / split / "000.tar", [*FILES[:count], FILES[3]])
    for place in ("a", "b"):
        assert len(open_source(str(tmp_path / place)).items) == 4
        assert len(open_source(str(tmp_path / place), split="test").items) == 2
    (tmp_path / "a" / "set-validation-000.tar").unlink()
    with pytest.raises(DataError, match="has files of train by their names, but none of test or val"):
        open_source(str(tmp_path / "a"), split="test")


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("s-{000..002}.tar", 3), ("s-{0..2}.tar", 0), ("s-00{2..1}.tar", 2), ("s-{000,002}.tar", 2), ("s-*.tar", 3)],
)
def test_patterns(tmp_path: Path, pattern: str, count: int) -> None:
    for number in range(3):
        write_tar(tmp_path / f"s-{number:03d}.tar", [(f"cat/{number}.png", picture(number))])
    if count == 0:
        with pytest.raises(DataError, match="3 of 3 files are not there"):
            open_source(f"{tmp_path}/{pattern}")
    else:
        assert len(open_source(f"{tmp_path}/{pattern}").items) == count


@pytest.mark.parametrize("pattern", ["{0..999999999999}.tar", "{1..1001}{1..101}.tar", "none-*.tar", "{a,a}.tar"])
def test_patterns_that_stand_for_nothing(tmp_path: Path, pattern: str) -> None:
    write_tar(tmp_path / "a.tar", FILES)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"stands for more|no such files|are not there|twice"):
        open_source(f"{tmp_path}/{pattern}")
    assert time.monotonic() - started < 10


# What is unsafe or damaged


def member(name: str, kind: bytes, target: str = "") -> Callable[[tarfile.TarFile], None]:
    def build(tar: tarfile.TarFile) -> None:
        header = tarfile.TarInfo(name)
        header.type, header.linkname = kind, target
        tar.addfile(header)

    return build


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (member("cat/9.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link, not a file"),
        (member("cat/9.png", tarfile.LNKTYPE, "cat/0.png"), "--hard-dereference"),
        (member("cat/9.png", tarfile.FIFOTYPE), "is a pipe, not a file"),
        (member("cat/9.png", tarfile.CHRTYPE), "is a device, not a file"),
        (member("cat/9.cls", tarfile.SYMTYPE, "/etc/passwd"), "is a link, not a file"),
        (member("cat/9.png", b"Z"), "is of kind 'Z', which is not read"),
        (member("cat/9.png", tarfile.GNUTYPE_SPARSE), "with holes"),
        (lambda tar: add(tar, "/etc/9.png", b""), "leads out of the tar"),
        (lambda tar: add(tar, "cat/../../9.png", b""), "leads out of the tar"),
        (lambda tar: add(tar, "..", b""), "leads out of the tar"),
        (lambda tar: add(tar, "cat/0.png", b""), "two images are called cat/0.png"),
        (lambda tar: add(tar, "./cat//0.png", b""), "two images are called cat/0.png"),
        (lambda tar: add(tar, "cat/\n.png", b""), "rename it"),
        (lambda tar: add(tar, f"cat/{'x/' * 2100}9.png", b""), "a name of 4,209 bytes"),
        (lambda tar: add(tar, f"{'x' * 300}/9.png", b""), "255 bytes"),
        (lambda tar: add(tar, "cat/9.png", b"", pax_headers={"GNU.sparse.major": "1"}), "with holes"),
        (lambda tar: add(tar, "cat/9.png", b"", pax_headers={"size": "9" * 20}), "no size|ends inside|whole"),
        (lambda tar: add(tar, "cat/9.png", b"", pax_headers={"c": "x" * (1 << 20)}), "an extended header of"),
    ],
)
def test_unsafe_members_are_refused(tmp_path: Path, build: Callable[[tarfile.TarFile], None], reason: str) -> None:
    with pytest.raises(DataError, match=reason) as refusal:
        open_source(str(made(tmp_path / "a.tar", build)))
    assert "\n" not in str(refusal.value)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = tar_bytes(FILES)
    end = whole.rindex(b"IEND") + 8
    path = tmp_path / "a.tar"
    for stop in [*range(1, end, 97), *range(512, end, 512), -(-end // 512) * 512]:
        path.write_bytes(whole[:stop])
        with pytest.raises(DataError, match=r"ends without its end mark|ends inside|no tar header"):
            open_source(str(path))
    path.write_bytes(whole[: -(-end // 512) * 512 + 512])  # a single block of zeros is an end
    assert origins(open_source(str(path))) == ORIGINS


@pytest.mark.parametrize("pack", [gzip.compress, __import__("bz2").compress, __import__("lzma").compress])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_compressed_tars_are_refused(tmp_path: Path, pack: Callable[[bytes], bytes], name: str) -> None:
    (tmp_path / name).write_bytes(pack(tar_bytes(FILES)))
    with pytest.raises(DataError, match=r"is compressed \(|is packed, so no image"):
        open_source(str(tmp_path / name))


def test_a_tar_in_a_tar_stays_inside(tmp_path: Path) -> None:
    """The inner tar says that a member is longer than the inner tar."""
    inner = bytearray(tar_bytes([("1.png", picture())]))
    inner[124:136] = b"%011o\0" % 100_000
    inner[148:156] = b" " * 8
    inner[148:156] = b"%06o\0 " % sum(inner[:512])
    path = write_tar(
        tmp_path / "a.tar", [("cat.tar", bytes(inner)), ("dog.tar", tar_bytes([("1.png", bytes(200_000))]))]
    )
    with pytest.raises(DataError, match=r"a\.tar/cat\.tar: ends inside '1\.png'"):
        open_source(str(path))


def test_images_that_are_too_large_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(write_tar(tmp_path / "a.tar", FILES)))
    monkeypatch.setattr("d4m_fast.sources.tars.MAX_BYTES", 10)
    with pytest.raises(DataError, match=r"too many for an image \(limit 10\)"):
        source.read(source.items[0])
    assert decoding.MAX_BYTES >= 8 * decoding.MAX_PIXELS  # the largest image that is decoded fits, in 16-bit RGBA


def test_a_bomb_of_pixels_in_a_tar(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    source = open_source(str(write_tar(tmp_path / "a.tar", [("cat/1.png", stream.getvalue())])))
    with pytest.raises(DataError, match="too many pixels"):
        source.read(source.items[0])


@pytest.mark.parametrize(
    "label", [b"[" * 60_000, b'{"label": ' + b"9" * 50_000 + b"}", b"\xff\xfe", b"{}", b"null", b""]
)
def test_labels_that_are_none(tmp_path: Path, label: bytes) -> None:
    with pytest.raises(DataError, match="nothing tells the class"):
        open_source(shards(tmp_path, labelled("json", label, label)))


# The index


def test_a_changed_tar_is_indexed_anew(tmp_path: Path) -> None:
    path, indexes = write_tar(tmp_path / "a.tar", FILES), tmp_path / "indexes"
    before = open_source(str(path), indexes=indexes)
    assert [entry.suffix for entry in indexes.iterdir()] == [".json"]
    status = path.stat()
    write_tar(path, [(name, picture(7)) for name, _ in FILES])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync -t leaves it
    with pytest.raises(PreflightError, match="changed since it was indexed"):
        before.read(before.items[0])
    after = open_source(str(path), indexes=indexes)
    assert after.read(after.items[0]).tobytes() != before_pixels()


def before_pixels() -> bytes:
    return Image.open(io.BytesIO(FILES[0][1])).tobytes()


def test_the_index_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, indexes = write_tar(tmp_path / "a.tar", FILES), tmp_path / "indexes"
    open_source(str(path), indexes=indexes)
    monkeypatch.setattr(tar_members, "_END", None)  # reading a header would fail
    assert origins(open_source(str(path), indexes=indexes)) == ORIGINS


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    path, indexes = write_tar(tmp_path / "a.tar", FILES), tmp_path / "indexes"
    open_source(str(path), indexes=indexes)
    (index,) = indexes.iterdir()
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(data)
    with pytest.raises(DamageError, match=r"remove .*\.json and run again to index anew"):
        open_source(str(path), indexes=indexes)


# Any bytes


def changed_tar(whole: bytes, rng: np.random.Generator) -> bytes:
    """The tar with some bytes of its headers changed, and their checksums made right again; or cut, or swapped."""
    data = bytearray(whole)
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(rng.integers(1, 4)):
        at = headers[rng.integers(len(headers))]
        field, length = [(0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155)][rng.integers(6)]
        place = at + field + int(rng.integers(length))
        count = int(rng.integers(1, 13))
        kind = rng.integers(3)
        if kind == 0:
            data[place : place + count] = rng.integers(0, 256, len(data[place : place + count]), np.uint8).tobytes()
        elif kind == 1:
            values = rng.choice(list(b"0127/.xgLKS\0\x80\xff9"), len(data[place : place + count]))
            data[place : place + count] = bytes(values.tolist())
        else:
            other = headers[rng.integers(len(headers))]
            data[at : at + 512] = data[other : other + 512]
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data[: rng.integers(1, len(data))] if rng.integers(8) == 0 else data)


def try_changes(path: Path, seed: int, count: int) -> int:
    """Open changed tars, and read all their images; how many were opened."""
    inner = tar_bytes(FILES[:2])
    wholes = [
        tar_bytes(FILES),
        tar_bytes([("cat.tar", inner), ("dog.tar", inner)]),
        tar_bytes(labelled("cls", b"0", b"1")),
    ]
    long_names = [(f"{'x' * 120}/{i}.png", picture(i)) for i in range(2)]
    wholes.append(tar_bytes(long_names))
    rng, opened = np.random.default_rng(seed), 0
    for number in range(count):
        path.write_bytes(changed_tar(wholes[number % len(wholes)], rng))
        try:
            source = open_source(str(path), prompts_needed=False)
            opened += 1
            for item in source.items:
                assert item.origin.count("/") and ".." not in item.origin.split("/"), item
                assert not item.origin.startswith("/")
                source.read(item)
        except D4MError as error:
            assert "\n" not in str(error)
    return opened


def test_changed_tars_end_in_images_or_one_line(tmp_path: Path) -> None:
    assert try_changes(tmp_path / "a.tar", 0, 1500) > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_changed_tars_end_so_too(tmp_path: Path, seed: int) -> None:
    assert try_changes(tmp_path / "a.tar", seed, 50_000) > 100
