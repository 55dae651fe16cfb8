"""`convert` and `distill --output`: the same bytes twice, nothing done twice, nothing lost, one line of error."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converting import FORMS, convert, converted, copied, state_of
from driving import Finished, Ran, json_lines, leftovers, one_line, run_cli, tree
from machine import NOBODY, Machine, root_only, run_on

from d4m_fast.config.convert import ConvertConfig
from d4m_fast.errors import UsageError
from d4m_fast.fingerprints import fingerprint
from d4m_fast.outputs import form as form_module
from d4m_fast.outputs.finished_run import open_finished
from d4m_fast.outputs.form import cut_shards
from d4m_fast.runs.commit import read_of_run, write_of_run
from d4m_fast.runs.identity import essence
from d4m_fast.runs.output_files import SummedFile
from d4m_fast.storage.locks import locked
from d4m_fast.storage.state import CONFIG, OUTPUT, SUMMARY, require_state, write_state

Distill = Callable[..., Ran]


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return copied(finished.run, tmp_path / "a-run")


def rewritten(run: Path, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    """A run whose manifest was changed, and its checksum with it: what only somebody else would write."""
    rows = json_lines(run / "manifest.jsonl")
    change(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "manifest.jsonl").write_text(text)
    config = fingerprint(essence(require_state(run / "config.json", CONFIG)))
    summary = read_of_run(run / "summary.json", SUMMARY, config)
    assert summary is not None
    summary["sha256_of"]["manifest.jsonl"] = hashlib.sha256(text.encode()).hexdigest()
    write_of_run(run / "summary.json", SUMMARY, config, summary)
    return run


@pytest.mark.parametrize("form", FORMS)
def test_two_conversions_have_the_same_bytes(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The second of a run that was moved, on another day, by another user's rules."""
    first = converted(finished.run, form, tmp_path / "first")
    moved = copied(finished.run, tmp_path / "elsewhere" / "moved")
    for file in moved.rglob("*"):
        os.utime(file, (1e9, 1e9))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    before = os.umask(0o077)
    try:
        second = converted(Path("elsewhere/moved"), form, Path("second"))
    finally:
        os.umask(before)
    assert tree(first) == tree(second)


@pytest.mark.parametrize("form", FORMS)
def test_no_file_names_a_place_of_the_machine(
    finished: Finished, tmp_path: Path, tiny_model: Path, photos: Path, form: str
) -> None:
    out = converted(finished.run, form, tmp_path / "out")
    places = (finished.run, finished.artifacts, tiny_model, photos, out, Path.home(), Path.cwd())
    for name, data in tree(out).items():
        for place in places:
            assert os.fsencode(place) not in data or str(place) == "/", (name, place)


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_output_is_left_as_it_is(finished: Finished, tmp_path: Path, form: str) -> None:
    out = converted(finished.run, form, tmp_path / "out")
    before = state_of(out)
    assert converted(finished.run, form, out) == out
    assert state_of(out) == before
    assert leftovers(out) == []


@pytest.mark.parametrize(
    ("form", "lost"),
    [
        ("webdataset", "train-00001.tar"),
        ("parquet", "data/train-00000-of-00002.parquet"),
        ("imagefolder", "bread/00001.png"),
        *((form, "README.md") for form in FORMS),
        ("imagefolder", "manifest.jsonl"),
    ],
)
def test_what_is_missing_is_made_and_the_rest_is_left(finished: Finished, tmp_path: Path, form: str, lost: str) -> None:
    out = converted(finished.run, form, tmp_path / "out")
    before = state_of(out)
    (out / lost).unlink()
    converted(finished.run, form, out)
    after = state_of(out)
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    images = [name for name in before if name.endswith((".tar", ".parquet", ".png")) and name != lost]
    assert [after[name] for name in images] == [before[name] for name in images]


def test_a_result_as_json(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = convert(finished.run, "parquet", out, "--json").json
    assert result == {
        "run": str(finished.run),
        "form": "parquet",
        "out": str(out),
        "images": 6,
        "classes": 3,
        "files": 3,
        "bytes": sum(len(data) for name, data in tree(out).items() if name not in ("output.json", ".lock")),
    }


def test_the_order_is_drawn_from_the_seed_and_not_by_class(finished: Finished) -> None:
    run = open_finished(finished.run)
    orders = {seed: [(i.class_id, i.index) for i in run.shuffled(seed).images] for seed in range(20)}
    assert len({tuple(order) for order in orders.values()}) > 15
    assert all(sorted(order) == [(c, i) for c in range(3) for i in range(2)] for order in orders.values())
    assert orders[0] == [(i.class_id, i.index) for i in run.shuffled(0).images]
    assert orders[0] != sorted(orders[0])
    firsts = [order[0] for order in orders.values()]
    assert {class_id for class_id, _ in firsts} == {0, 1, 2}


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_distill_derives_the_form_as_its_last_step(
    distill: Distill, finished: Finished, tmp_path: Path, form: str
) -> None:
    ran = distill("--output", form, "--json", "--quiet")
    derived = tmp_path / "run" / "outputs" / form
    assert ran.code == 0
    assert ran.json["output"]["out"] == str(derived)
    assert convert(finished.run, form, tmp_path / "beside").code == 0
    assert tree(derived) == tree(tmp_path / "beside")
    before = state_of(tmp_path / "run")
    assert distill("--output", form).code == 0
    assert state_of(tmp_path / "run") == before
    assert run_cli("verify", tmp_path / "run").code == 0


def test_distill_of_class_folders_derives_nothing(distill: Distill, tmp_path: Path) -> None:
    ran = distill("--output", "imagefolder", "--json", "--quiet")
    assert (ran.code, ran.json["output"]) == (0, None)
    assert not (tmp_path / "run" / "outputs").exists()


def test_a_run_goes_on_whatever_form_is_derived_from_it(distill: Distill, tmp_path: Path) -> None:
    assert distill().code == 0
    for form in ("webdataset", "parquet"):
        assert distill("--output", form).code == 0
    config = tmp_path / "run" / "config.json"
    assert run_cli("distill", "--config", config, "--out", tmp_path / "run", "--artifacts", tmp_path / "art").code == 0
    assert sorted(path.name for path in (tmp_path / "run" / "outputs").iterdir()) == ["parquet", "webdataset"]


def without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)


def test_distill_says_before_it_starts_that_pyarrow_is_missing(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pyarrow(monkeypatch)
    one_line(distill("--output", "parquet"), 6, "pip install 'd4m-fast[formats]'")
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_other_forms_are_there(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pyarrow(monkeypatch)
    one_line(convert(finished.run, "parquet", tmp_path / "parquet"), 6, "pip install 'd4m-fast[formats]'")
    assert not (tmp_path / "parquet").exists()
    for form in ("imagefolder", "webdataset"):
        assert convert(finished.run, form, tmp_path / form).code == 0


def no_run(run: Path) -> None:
    shutil.rmtree(run)


def not_a_run(run: Path) -> None:
    (run / "config.json").unlink()


def unfinished(run: Path) -> None:
    (run / "summary.json").unlink()


def flipped(run: Path) -> None:
    file = run / "images" / "bread" / "00000.png"
    data = bytearray(file.read_bytes())
    data[60] ^= 1
    file.write_bytes(data)


def shortened(run: Path) -> None:
    file = run / "images" / "bread" / "00000.png"
    file.write_bytes(file.read_bytes()[:-1])


def image_gone(run: Path) -> None:
    (run / "images" / "bread" / "00000.png").unlink()


def image_a_pipe(run: Path) -> None:
    image_gone(run)
    os.mkfifo(run / "images" / "bread" / "00000.png")


def manifest_changed(run: Path) -> None:
    (run / "manifest.jsonl").write_text((run / "manifest.jsonl").read_text().replace("bread", "broad"))


def manifest_gone(run: Path) -> None:
    (run / "manifest.jsonl").unlink()


def summary_changed(run: Path) -> None:
    (run / "summary.json").write_text((run / "summary.json").read_text().replace('"images": 6', '"images": 7'))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (no_run, 1, "no such run directory"),
        (not_a_run, 4, "not a run of ours"),
        (unfinished, 4, "not finished; d4m-fast verify prints the command that goes on"),
        (flipped, 5, "bread/00000.png: damaged (its SHA-256 is another than the manifest has)"),
        (shortened, 5, "bread/00000.png: damaged"),
        (image_gone, 5, "bread/00000.png: damaged (cannot be read, No such file or directory)"),
        (image_a_pipe, 5, "bread/00000.png: damaged (cannot be read, is a named pipe, not a file)"),
        (manifest_changed, 5, "manifest.jsonl: damaged"),
        (manifest_gone, 5, "manifest.jsonl: damaged"),
        (summary_changed, 5, "summary.json: damaged"),
    ],
)
def test_a_run_that_is_not_whole(
    run: Path, tmp_path: Path, form: str, change: Callable[[Path], None], code: int, said: str
) -> None:
    change(run)
    one_line(convert(run, form, tmp_path / "out"), code, said)
    assert leftovers(tmp_path) == []
    assert not any(name.endswith((".tar", ".parquet")) for name in tree(tmp_path / "out"))
    assert code == 5 or not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_is_mended_is_gone_on_with(run: Path, finished: Finished, tmp_path: Path, form: str) -> None:
    flipped(run)
    one_line(convert(run, form, tmp_path / "out"), 5, "--repair")
    shutil.copy(finished.run / "images" / "bread" / "00000.png", run / "images" / "bread" / "00000.png")
    assert convert(run, form, tmp_path / "out").code == 0
    assert convert(finished.run, form, tmp_path / "whole").code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    "file",
    ["images/../../stolen.png", "/etc/passwd", "images/bread/../../../x.png", "../x/00000.png", "x.png", "images/.."],
)
def test_a_manifest_that_names_files_elsewhere(run: Path, tmp_path: Path, file: str) -> None:
    """Whoever hands a run on can give its manifest any checksum."""
    rewritten(run, lambda rows: rows[0].update(file=file))
    for form in FORMS:
        one_line(convert(run, form, tmp_path / form), 5, "manifest.jsonl: damaged (it names ")
        assert tree(tmp_path / form) == {}


def test_a_name_that_is_not_utf8_is_told_in_letters(run: Path, tmp_path: Path) -> None:
    """Of the real images' files: a byte that is not UTF-8, which parquet files and most readers of JSON refuse."""
    import pyarrow.parquet

    rewritten(run, lambda rows: rows[0].update(nearest="apple/\udcff.png"))
    for form in FORMS:
        assert convert(run, form, tmp_path / form).code == 0
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / "data")
    assert "apple/\\udcff.png" in table["nearest"].to_pylist()
    nearest = [row["nearest"] for row in json_lines(tmp_path / "imagefolder" / "manifest.jsonl")]
    assert "apple/\\udcff.png" in nearest


@pytest.mark.parametrize("name", ["README.md", "classes.json", "manifest.jsonl", "output.json", ".lock"])
def test_a_class_that_is_called_like_a_file_of_the_form(run: Path, tmp_path: Path, name: str) -> None:
    (run / "images" / "cloud").rename(run / "images" / name)
    rewritten(run, lambda rows: [row.update(file=row["file"].replace("cloud", name)) for row in rows])
    one_line(convert(run, "imagefolder", tmp_path / "out"), 2, f"class folder {name} has the name of a file")
    assert not (tmp_path / "out").exists()
    for form in ("webdataset", "parquet"):
        assert convert(run, form, tmp_path / form).code == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_place_of_somebody_else(finished: Finished, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    one_line(convert(finished.run, form, out), 4, "not empty and not an output of ours (README.md)")
    assert {name: data for name, data in tree(out).items() if name != ".lock"} == {"README.md": b"mine"}


@pytest.mark.parametrize(
    ("form", "name"), [("imagefolder", "bread/00000.png"), ("webdataset", "train-00000.tar"), ("parquet", "README.md")]
)
def test_a_file_of_somebody_else_that_came_meanwhile(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, name: str
) -> None:
    """An output that was begun, whose record does not have the file."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(SummedFile, "write", no_space)
        assert convert(finished.run, form, out).code == 6
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    one_line(convert(finished.run, form, out), 4, f"{name}: is in the way, and not of this output")
    assert (out / name).read_text() == "mine"
    assert leftovers(out) == []
    (out / name).unlink()
    assert convert(finished.run, form, out).code == 0


def no_space(*_: object) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--shard-images", 2), "options.shard_images"),
        (("--shuffle-seed", 1), "shuffle_seed: 0 there, 1 now"),
        (("--license", "mit"), 'license: null there, "mit" now'),
    ],
)
def test_other_options_than_the_output_has(
    finished: Finished, tmp_path: Path, flags: tuple[object, ...], said: str
) -> None:
    out = tmp_path / "out"
    assert convert(finished.run, "webdataset", out).code == 0
    before = state_of(out)
    one_line(convert(finished.run, "webdataset", out, *flags), 4, "holds another output", said.split(".")[-1])
    one_line(convert(finished.run, "parquet", out), 4, "another output", 'form: "webdataset" there, "parquet" now')
    assert state_of(out) == before


def test_an_output_of_another_run(run: Path, finished: Finished, tmp_path: Path) -> None:
    out = converted(finished.run, "webdataset", tmp_path / "out")
    before = state_of(out)
    rewritten(run, lambda rows: rows[0].update(nearest="another"))
    one_line(convert(run, "webdataset", out, "--shard-images", 4), 4, "manifest_sha256: ", "choose another --out")
    assert state_of(out) == before


def test_a_part_of_an_output_is_not_gone_on_with_by_other_libraries(finished: Finished, tmp_path: Path) -> None:
    """Its files would be of two kinds; a whole one is left as it is."""
    out = tmp_path / "out"
    assert convert(finished.run, "parquet", out).code == 0
    record = require_state(out / "output.json", OUTPUT)
    record["versions"]["pyarrow"] = "20.0.0"
    write_state(out / "output.json", OUTPUT, record)
    assert convert(finished.run, "parquet", out).code == 0
    write_state(out / "output.json", OUTPUT, {**record, "complete": False})
    one_line(convert(finished.run, "parquet", out), 4, 'pyarrow: "20.0.0" there')


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--to", "webdataset", "--shard-images", 0), 2, "--shard-images must be at least 1, not 0"),
        (("--to", "imagefolder", "--shard-images", 5), 2, "--shard-images: --to imagefolder has no such option"),
        (("--to", "imagefolder", "--shuffle-seed", 5), 2, "--shuffle-seed: --to imagefolder has no such option"),
        (("--to", "webdatasets"), 2, "Did you mean 'webdataset'?"),
        ((), 2, "--to"),
    ],
)
def test_options_that_make_no_sense(
    finished: Finished, tmp_path: Path, args: tuple[object, ...], code: int, said: str
) -> None:
    one_line(run_cli("convert", finished.run, "--out", tmp_path / "out", *args), code, said)
    assert not (tmp_path / "out").exists()


def test_too_many_files(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_module, "MOST_SHARDS", 5)
    with pytest.raises(UsageError, match="--shard-images 1 makes 6 files; at most 5"):
        cut_shards(open_finished(finished.run), ConvertConfig(shard_images=1), "{shard}")


@pytest.mark.parametrize("place", ["", "images", "images/bread", "prototypes", "groups/x", "mine", "outputs/../x"])
def test_a_place_in_the_run_itself(run: Path, place: str) -> None:
    before = state_of(run)
    one_line(convert(run, "webdataset", run / place), 2, "lies in the run itself")
    assert state_of(run) == before


@pytest.mark.parametrize("where", ["file/below", "file", "/proc/nope", "x" * 300, "/dev/null/out"])
def test_a_place_that_cannot_be_written_to(finished: Finished, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    one_line(convert(finished.run, "webdataset", tmp_path / where), 6, "choose another")
    assert (tmp_path / "file").read_text() == "mine"


@root_only
@pytest.mark.parametrize("form", FORMS)
def test_a_place_that_is_read_only(finished: Finished, open_to_all: Path, form: str) -> None:
    run = copied(finished.run, open_to_all / "run")
    for path in (run, *run.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (open_to_all / "out").mkdir(mode=0o755)
    nobody = Machine(user=NOBODY)
    ran = run_on(nobody, open_to_all, "convert", run, "--to", form, "--out", open_to_all / "out", "-q")
    one_line(ran, 6, "permission denied; choose another directory")
    (open_to_all / "out").chmod(0o777)
    assert run_on(nobody, open_to_all, "convert", run, "--to", form, "--out", open_to_all / "out", "-q").code == 0
    (run / "images" / "bread" / "00000.png").chmod(0)
    ran = run_on(nobody, open_to_all, "convert", run, "--to", form, "--out", open_to_all / "new", "-q")
    one_line(ran, 6, "00000.png: cannot be read (Permission denied)")


def test_a_read_only_file_system(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = builtins.open

    def read_only(path: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        if mode != "rb" and ".tmp-" in path.name:
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, mode, *args, **named)

    monkeypatch.setattr(Path, "open", read_only)
    one_line(convert(finished.run, "webdataset", tmp_path / "out"), 6, "read-only file system", "choose another")


def test_a_place_in_use(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        one_line(convert(finished.run, "webdataset", tmp_path / "out"), 4, "in use")


def test_a_run_in_use(run: Path, tmp_path: Path) -> None:
    with locked(run):
        one_line(convert(run, "webdataset", tmp_path / "out"), 4, "in use")
    with locked(run, read_only=True):  # as another conversion, or verify, does
        assert convert(run, "webdataset", tmp_path / "out").code == 0


def test_class_folders_are_images_for_distill(finished: Finished, tmp_path: Path, tiny_model: Path) -> None:
    """What is beside them is no hindrance."""
    out = converted(finished.run, "imagefolder", tmp_path / "out")
    options = ("--data", out, "--model", tiny_model, "--ipc", 1, "--steps", 4, "--threads", 1)
    ran = run_cli("distill", *options, "--out", tmp_path / "run", "--artifacts", tmp_path / "art", "--json", "--quiet")
    assert (ran.code, ran.json["images"], ran.json["classes"]) == (0, 3, 3)
