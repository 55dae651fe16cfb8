"""Every layout in docs/data.md, and links, names and folders that are no classes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from dataset_layouts import LAYOUTS, Layout
from own_time import own_seconds
from PIL import Image

from d4m_fast.errors import DataError, UsageError
from d4m_fast.sources.dataset import open_source


def classes_below(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / folder / "1.png")
    return root


@pytest.mark.parametrize("layout", [row for row in LAYOUTS if not row.refusal], ids=lambda row: row.name)
def test_layouts_that_are_opened(tmp_path: Path, layout: Layout) -> None:
    source = open_source(str(layout.make(tmp_path)), split=layout.split)
    assert [info.folder for info in source.classes] == list(layout.folders)
    assert [info.prompt for info in source.classes] == list(layout.prompts)
    said = " ".join(source.notes)
    assert [part for part in layout.notes if part not in said] == []


@pytest.mark.parametrize("layout", [row for row in LAYOUTS if row.refusal], ids=lambda row: row.name)
def test_layouts_that_are_refused(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(DataError) as refusal:
        open_source(str(layout.make(tmp_path)), split=layout.split)
    assert layout.refusal.format(root=tmp_path) in str(refusal.value)


@pytest.mark.parametrize("target", ["/proc", "/sys", "/dev", "/", "..", "."])
@pytest.mark.parametrize("below", ["", "cat/"])
def test_links_out_of_the_set_end_at_once(tmp_path: Path, target: str, below: str) -> None:
    root = classes_below(tmp_path / "set", "cat", "dog")
    (root / f"{below}elk").symlink_to(target)
    started = own_seconds()
    if below and target in (".", ".."):  # folders above in the same set are passed over, as before
        assert len(open_source(str(root)).items) == 2
    else:
        with pytest.raises(DataError, match="elk: "):
            open_source(str(root))
    assert own_seconds() - started < 1


@pytest.mark.parametrize("target", ["gone", "elk"])
def test_a_broken_link_in_place_of_a_class_is_named(tmp_path: Path, target: str) -> None:
    root = classes_below(tmp_path, "cat", "dog")
    (root / "elk").symlink_to(target)
    with pytest.raises(DataError, match="broken links where class folders may be: elk"):
        open_source(str(root))


@pytest.mark.parametrize("name", ["003.ak47", "002.Lay", "c.d", "v1.0"])
def test_a_broken_link_with_a_dot_may_be_a_class(tmp_path: Path, name: str) -> None:
    root = classes_below(tmp_path / "set", "cat", "dog")
    (root / name).symlink_to("nowhere")
    with pytest.raises(DataError, match="broken links where class folders may be"):
        open_source(str(root))


@pytest.mark.parametrize("name", ["x.log", "x.sh", "notes.txt", "1.txt", "X.BAK", ".hidden", "weights.h5", "x.jpg"])
def test_a_broken_link_to_a_file_is_left_out(tmp_path: Path, name: str) -> None:
    root = classes_below(tmp_path / "set", "cat", "dog")
    (root / name).symlink_to("nowhere")
    (root / "cat" / name).symlink_to("nowhere")
    assert [info.folder for info in open_source(str(root)).classes] == ["cat", "dog"]


def test_a_broken_link_may_be_a_class_where_classes_have_dots(tmp_path: Path) -> None:
    root = classes_below(tmp_path / "set", "mr.bean", "dog")
    (root / "dr.who").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"broken links where class folders may be: dr\.who"):
        open_source(str(root))


@pytest.mark.parametrize("below", ["cat", "cat/more"])
def test_a_broken_link_in_place_of_a_folder_below_a_class_is_named(tmp_path: Path, below: str) -> None:
    root = classes_below(tmp_path / "set", "cat/more", "dog")
    (root / below / "elk").symlink_to("nowhere")
    with pytest.raises(DataError, match=f"{below}: broken links where folders of images may be: elk"):
        open_source(str(root))


def test_folders_that_links_show_again_are_read_once(tmp_path: Path) -> None:
    root = classes_below(tmp_path / "set", "cat/b", "cat/c/d", "dog")
    classes_below(tmp_path / "elsewhere", "big/part")
    (root / "cat" / "a").symlink_to("b")
    (root / "cat" / "c" / "up").symlink_to(root / "cat")
    (root / "cat" / "x").symlink_to(tmp_path / "elsewhere" / "big" / "part")
    (root / "cat" / "y").symlink_to(tmp_path / "elsewhere" / "big")
    origins = [item.origin for item in open_source(str(root)).items]
    assert origins == ["cat/b/1.png", "cat/c/d/1.png", "cat/x/1.png", "dog/1.png"]


@pytest.mark.parametrize("target", ["set/dog/more", "elsewhere"])
def test_folders_of_two_classes_are_refused(tmp_path: Path, target: str) -> None:
    root = classes_below(tmp_path / "set", "cat", "dog/more")
    classes_below(tmp_path / "elsewhere", "x")
    for folder in ("cat", "dog"):
        (root / folder / "z").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match="its images would be of both classes"):
        open_source(str(root))


def test_what_is_left_out_fits_a_line(tmp_path: Path) -> None:
    root = classes_below(tmp_path / "set", "cat", "dog")
    for i in range(300):
        (root / "cat" / f"1.x{i}").touch()
    (root / "cat" / f"1.{'long' * 50}").touch()
    (line,) = open_source(str(root)).notes
    assert line.endswith("and 293 of 293 other kinds") and len(line) < 200


@pytest.mark.parametrize(("data", "reason"), [("", "names nothing"), ("/", "the root of all files")])
def test_places_that_are_no_set_are_refused_at_once(data: str, reason: str) -> None:
    started = own_seconds()
    with pytest.raises((DataError, UsageError), match=reason) as refusal:
        open_source(data)
    assert own_seconds() - started < 1 and "\n" not in str(refusal.value)


@pytest.mark.parametrize("suffix", [".tar.zst", ".tbz2", ".txz", ".tar.lz4", ".gz", ".tar.Z", ".7z.001", ".xz"])
def test_classes_packed_otherwise_are_named(tmp_path: Path, suffix: str) -> None:
    root = classes_below(tmp_path / "set", "cat", "dog")
    (root / f"elk{suffix}").write_bytes(b"packed")
    with pytest.raises(DataError, match="is still packed"):
        open_source(str(root))


def test_folders_that_link_to_each_other_are_refused(tmp_path: Path) -> None:
    root = classes_below(tmp_path, "cat", "dog")
    (root / "cat" / "x").symlink_to(root / "dog")
    (root / "dog" / "x").symlink_to(root / "cat")
    with pytest.raises(DataError, match=r"is the same folder as .*; its images would be of both classes"):
        open_source(str(root))


def test_one_folder_under_two_names_is_refused(tmp_path: Path) -> None:
    root = classes_below(tmp_path, "cat", "dog")
    (root / "elk").symlink_to(root / "dog")
    with pytest.raises(DataError, match="is the same folder as"):
        open_source(str(root))


_UNSEEN = (
    "\u202e\u200b\u2028\ufeff\u3164\u00ad\u034f"
    "\u2800\u17b4\u180b\ufe00\ufe0e\uffff\ufdd0\ue000\U000e0041\U000e0100\U0010ffff"
)


@pytest.mark.parametrize("name", [f"a{character}b" for character in _UNSEEN], ids=ascii)
def test_invisible_characters_in_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"U\\+{ord(name[1]):04X}"):
        open_source(str(classes_below(tmp_path, "cat", name)))


def test_joiners_that_scripts_need_are_let_through(tmp_path: Path) -> None:
    folders = ["\u0645\u06cc\u200c\u062e\u0648", "❤\ufe0f", "👩\u200d🌾"]
    assert [info.prompt for info in open_source(str(classes_below(tmp_path, *folders))).classes] == folders


def test_names_that_differ_by_composition_only_are_refused(tmp_path: Path) -> None:
    names = ["café", unicodedata.normalize("NFD", "café")]
    with pytest.raises(DataError, match="two folders are called"):
        open_source(str(classes_below(tmp_path, *names)))


def test_own_directories_are_no_classes(tmp_path: Path) -> None:
    root = classes_below(tmp_path, "cat", "dog", "out", "cat/art")
    source = open_source(str(root), own=[root / "out", root / "cat" / "art", root / "none"])
    assert [item.origin for item in source.items] == ["cat/1.png", "dog/1.png"]
    assert source.notes == ("not read: cat/art, out (d4m-fast's own runs and cache)",)
