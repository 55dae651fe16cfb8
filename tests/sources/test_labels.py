from pathlib import Path

import pytest

from d4m_fast.errors import DataError, UsageError
from d4m_fast.sources.class_names import imagenet_labels
from d4m_fast.sources.labels import resolve_prompts

FOLDERS = ["ant", "big_cat", "ünï"]


def prompt_file(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_defaults_are_class_names_or_folder_names() -> None:
    assert resolve_prompts(["0", "1"], ["apple", "aquarium_fish"], None) == ["apple", "aquarium fish"]
    assert resolve_prompts(FOLDERS, None, None) == ["ant", "big cat", "ünï"]


def test_wnids_get_their_label_lines_only_when_all_folders_are_wnids() -> None:
    assert resolve_prompts(["n01440764", "n03126707"], None, None) == ["tench, Tinca tinca", "crane"]
    with pytest.raises(DataError, match="2 of 3 folders are WordNet ids; notes is not: remove it or give --prompts"):
        resolve_prompts(["n01440764", "n03126707", "notes"], None, None)


def test_official_lines_differ_in_the_two_cranes_only() -> None:
    ours, official = imagenet_labels(), imagenet_labels(official=True)
    assert list(ours) == sorted(ours) == list(official) and len(ours) == 1000
    changed = {list(ours).index(wnid): official[wnid] for wnid in ours if ours[wnid] != official[wnid]}
    assert changed == {134: "crane,machine", 517: "crane, bird"}
    assert resolve_prompts(["n02012849"], None, "official") == ["crane,machine"]
    assert list(ours.values())[999] == "toilet tissue, toilet paper, bathroom tissue"


def test_unknown_wnid_is_named() -> None:
    with pytest.raises(DataError, match=r"n99999999.*--prompts"):
        resolve_prompts(["n01440764", "n99999999"], None, None)


@pytest.mark.parametrize(("folders", "names"), [(["0"], ["apple"]), (["ant"], None)])
def test_official_is_refused_for_other_classes(folders: list[str], names: list[str] | None) -> None:
    with pytest.raises(UsageError, match="--prompts official"):
        resolve_prompts(folders, names, "official")


@pytest.mark.parametrize(
    "content",
    [
        "an ant\na cat\nübung\n",
        "an ant\r\na cat\r\nübung",
        "an ant\na cat\nübung\n\n",
        "\ufeffan ant\na cat\nübung\n",
        "ünï\tübung\nant\tan ant\nbig_cat\ta cat\n",
    ],
)
def test_prompt_files(tmp_path: Path, content: str) -> None:
    assert resolve_prompts(FOLDERS, None, prompt_file(tmp_path, content)) == ["an ant", "a cat", "übung"]


def test_prompts_may_repeat(tmp_path: Path) -> None:
    assert resolve_prompts(FOLDERS, None, prompt_file(tmp_path, "crane\n" * 3)) == ["crane"] * 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a\n\nc\n", "line 2 is blank"),
        ("", "line 1 is blank"),
        ("a\nb\n", "2 prompts for 3 classes"),
        ("a\nb\nc\nd\n", "4 prompts for 3 classes"),
        (b"a\n\xff\nc\n", "not UTF-8"),
        (b"a\n\0\nc\n", "line 2 is not text"),
        ("ant\ta\nbig_cat\tb\n", "no prompt for: ünï"),
        ("ant\ta\nbig_cat\tb\nünï\tc\nelk\td\n", "no such class folder: elk"),
        ("ant\ta\nbig_cat\tb\nünï\tc\nant\td\n", "given twice: ant"),
        ("ant\ta\nbig_cat\nünï\tc\n", "line 2 is not folder<TAB>prompt"),
        ("ant\ta\nbig_cat\t \nünï\tc\n", "line 2 is not folder<TAB>prompt"),
    ],
)
def test_prompt_files_that_do_not_fit(tmp_path: Path, content: str | bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        resolve_prompts(FOLDERS, None, prompt_file(tmp_path, content))


def test_missing_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        resolve_prompts(FOLDERS, None, str(tmp_path / "none.txt"))


@pytest.mark.parametrize("synonym", [0, -1])
def test_imagenet_labels_in_class_order_are_read(tmp_path: Path, synonym: int) -> None:
    labels = imagenet_labels()
    prompts = [f"a photo of a {label.split(', ')[synonym]}" for label in labels.values()]
    assert resolve_prompts(list(labels), None, prompt_file(tmp_path, "\n".join(prompts))) == prompts


@pytest.mark.parametrize(
    "order",
    [sorted(range(1000), key=str), [*range(1, 1000), 0], [0, 900, *range(2, 900), 1, *range(901, 1000)]],
    ids=["as text", "turned", "two swapped"],
)
def test_imagenet_labels_in_another_order_are_refused(tmp_path: Path, order: list[int]) -> None:
    labels = imagenet_labels()
    names = list(labels.values())
    with pytest.raises(DataError, match=r"names the class n.* and stands in the place of n"):
        resolve_prompts(list(labels), None, prompt_file(tmp_path, "\n".join(names[i] for i in order)))


def test_names_of_a_set_in_another_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1 names the class 1 and stands in the place of 0"):
        resolve_prompts(["0", "1"], ["shirt", "ankle boot"], prompt_file(tmp_path, "an ankle boot\na shirt\n"))


@pytest.mark.parametrize(
    ("folders", "prompts"),
    [
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ["Chihuahua", "Japanese spaniel"]),
        (["001.Black_Bird", "002.Auk"], ["Black Bird", "Auk"]),
        (["N01440764", "N03126707"], ["tench, Tinca tinca", "crane"]),
        (["1.2mm", "1.5mm"], ["1.2mm", "1.5mm"]),
    ],
)
def test_names_in_folder_names(folders: list[str], prompts: list[str]) -> None:
    assert resolve_prompts(folders, None, None) == prompts


@pytest.mark.parametrize("folders", [["n02085620-Chihuahua", "n02085782-Pug", "notes"], ["001.Auk", "002.Owl", "x"]])
def test_a_folder_called_otherwise_than_most_is_named(folders: list[str]) -> None:
    with pytest.raises(DataError, match=f"2 of 3 folders are called like '.*', but not {folders[-1]}"):
        resolve_prompts(folders, None, None)
