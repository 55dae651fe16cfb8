"""Forms of label files, and the prompts that come of each: rows of tests and of docs/data.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WNIDS = ("n01440764", "n01443537", "n02119789")
WORDS = ("car", "dog", "ship")
NUMBERS = tuple(str(i) for i in range(11))
ANIMALS = ("tench, Tinca tinca", "goldfish", "kit fox")
PADDED = tuple(f"{i:02d}" for i in range(11))
VEHICLES = ("a van", "a pet", "a boat")
SEPARATORS = {"bar": " | ", "arrow": " -> ", "double arrow": "=>", "dash": " - ", "wide colon": "\uff1a"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class LabelForm:
    """A file for some folders, and its prompts, in class order, or the reason why it is refused."""

    name: str
    content: str | bytes
    outcome: Sequence[str] | str
    folders: Sequence[str] = WNIDS

    @property
    def shown(self) -> str:
        """The first line of the file."""
        text = self.content if isinstance(self.content, str) else self.content.decode("latin-1")
        return text.lstrip().split("\n")[0].replace("\t", "<TAB>").replace("|", "\\|").rstrip("\r")


def _joined(separator: str, *, folders: Sequence[str] = WNIDS, prompts: Sequence[str] = ANIMALS) -> str:
    """Lines in the opposite of class order, so that a reading by position is wrong."""
    pairs = reversed(list(zip(folders, prompts, strict=True)))
    return "".join(f"{folder}{separator}{prompt}\n" for folder, prompt in pairs)


def _numbered(separator: str, start: int = 0) -> str:
    return "".join(f"{i}{separator}{prompt}\n" for i, prompt in enumerate(ANIMALS, start))


ACCEPTED = (
    LabelForm(
        "other classes' names in a sentence",
        "a car on a ship\na dog\na ship\n",
        ("a car on a ship", "a dog", "a ship"),
        WORDS,
    ),
    LabelForm("tabs, and folders like comments", "#1\ta\n[b]\tb\n{c}\tc\n", ("a", "b", "c"), ("#1", "[b]", "{c}")),
    LabelForm("folder, tab, prompt: never ambiguous", _joined("\t"), ANIMALS),
    LabelForm("one prompt per line, in class order", "a car\na dog\na ship\n", ("a car", "a dog", "a ship"), WORDS),
    LabelForm(
        "... with CRLF and blank lines at the end",
        "a car\r\na dog\r\na ship\r\n\r\n",
        ("a car", "a dog", "a ship"),
        WORDS,
    ),
    LabelForm("... with a byte order mark", "\ufeffa car\na dog\na ship", ("a car", "a dog", "a ship"), WORDS),
    LabelForm("... after lines of comment", "# vehicles\na car\na dog\na ship", ("a car", "a dog", "a ship"), WORDS),
    LabelForm("LOC_synset_mapping.txt: WordNet id, space, label", _joined(" "), ANIMALS),
    LabelForm("WordNet id, comma, label", _joined(", "), ANIMALS),
    LabelForm("WordNet id, colon, label", _joined(": "), ANIMALS),
    LabelForm("WordNet id, semicolon, label", _joined(";"), ANIMALS),
    LabelForm("WordNet id, equals sign, label", _joined(" = "), ANIMALS),
    *(
        LabelForm(f"folder, {name}, prompt", _joined(mark, folders=WORDS, prompts=VEHICLES), VEHICLES, WORDS)
        for name, mark in SEPARATORS.items()
    ),
    *(LabelForm(f"WordNet id, {name}, label", _joined(mark), ANIMALS) for name, mark in SEPARATORS.items()),
    *(LabelForm(f"number, {name}, label", _numbered(mark), ANIMALS) for name, mark in SEPARATORS.items()),
    LabelForm("number, folder, prompt", "0,car,a van\n1,dog,a pet\n2,ship,a boat\n", VEHICLES, WORDS),
    LabelForm(
        "CUB-200's classes.txt", "1 001.Black_Bird\n2 002.Auk\n", ("Black Bird", "Auk"), ("001.Black_Bird", "002.Auk")
    ),
    LabelForm("folders 00 to 10, keys 0 to 10", _joined(": ", folders=NUMBERS, prompts=DIGITS), DIGITS, PADDED),
    LabelForm("a list in Markdown", "- a van\n- a pet\n- a boat\n", VEHICLES, WORDS),
    LabelForm("lines in quotes", "'a van'\n'a pet'\n'a boat'\n", VEHICLES, WORDS),
    LabelForm("lines that end with a comma", "a van,\na pet,\na boat,\n", VEHICLES, WORDS),
    LabelForm(
        "learned tokens", "<van-1>\n<pet-1> in grass\n<boat-1>\n", ("<van-1>", "<pet-1> in grass", "<boat-1>"), WORDS
    ),
    LabelForm(
        "prompts with weights", "(a van:1.2)\n(a pet)\n(a boat)\n", ("(a van:1.2)", "(a pet)", "(a boat)"), WORDS
    ),
    LabelForm(
        "CSV with two columns of keys",
        "index,wnid,label\n0,n01440764,tench\n2,n02119789,fox\n1,n01443537,goldfish\n",
        ("tench", "goldfish", "fox"),
    ),
    LabelForm("words.txt: more WordNet ids than classes", "n00001740\tentity\n" + _joined("\t"), ANIMALS),
    LabelForm(
        "map_clsloc.txt: WordNet id, the devkit's number, label",
        "n02119789 1 kit_fox\nn01440764 7 tench\nn01443537 12 gold_fish\n",
        ("tench", "gold fish", "kit fox"),
    ),
    LabelForm("number, colon, label", _numbered(": "), ANIMALS),
    LabelForm("number, space, label, in order", _numbered(" "), ANIMALS),
    LabelForm("number, tab, label", _numbered("\t"), ANIMALS),
    LabelForm("numbers from 1", "3: a ship\n1: a car\n2: a dog\n", ("a car", "a dog", "a ship"), WORDS),
    LabelForm(
        "number, WordNet id, label",
        "0 n01440764 tench\n1 n01443537 goldfish\n2 n02119789 fox\n",
        ("tench", "goldfish", "fox"),
    ),
    LabelForm("folders 0 to 10, by number", _joined(": ", folders=NUMBERS, prompts=DIGITS), DIGITS, NUMBERS),
    LabelForm("folders 0 to 10, one prompt per line", "\n".join(DIGITS), DIGITS, NUMBERS),
    LabelForm(
        "folder, colon, prompt",
        _joined(": ", folders=WORDS, prompts=("a car", "a dog", "a ship")),
        ("a car", "a dog", "a ship"),
        WORDS,
    ),
    LabelForm(
        "JSON object by number", '{"2": "kit fox", "0": "tench", "1": "goldfish"}', ("tench", "goldfish", "kit fox")
    ),
    LabelForm(
        "JSON object by folder",
        '{"n02119789": "fox", "n01440764": "tench", "n01443537": "goldfish"}',
        ("tench", "goldfish", "fox"),
    ),
    LabelForm(
        "imagenet_class_index.json",
        '{"0": ["n01440764", "tench"], "2": ["n02119789", "kit_fox"], "1": ["n01443537", "goldfish"]}',
        ("tench", "goldfish", "kit fox"),
    ),
    LabelForm(
        "JSON object of class ids", '{"kit fox": 2, "tench": 0, "goldfish": 1}', ("tench", "goldfish", "kit fox")
    ),
    LabelForm("JSON list in class order", '["tench", "goldfish", "kit fox"]', ("tench", "goldfish", "kit fox")),
    LabelForm(
        "JSON list of pairs",
        '[["n02119789", "fox"], ["n01440764", "tench"], ["n01443537", "goldfish"]]',
        ("tench", "goldfish", "fox"),
    ),
    LabelForm(
        "JSON lines",
        '{"id": 1, "name": "dog"}\n{"id": 0, "name": "a car"}\n{"id": 2, "name": "a ship"}\n',
        ("a car", "dog", "a ship"),
        WORDS,
    ),
    LabelForm(
        "a model's config.json",
        '{"id2label": {"0": "tench", "1": "goldfish", "2": "fox"}}',
        ("tench", "goldfish", "fox"),
    ),
    LabelForm(
        "imagenet1000_clsidx_to_labels.txt: a Python dict",
        "{0: 'tench, Tinca tinca',\n 1: \"goldfish\",\n 2: 'kit fox'}",
        ANIMALS,
    ),
    LabelForm(
        "lines of a dict without its braces", "0: 'tench, Tinca tinca',\n1: 'goldfish',\n2: 'kit fox'\n", ANIMALS
    ),
    LabelForm(
        "CSV with a header",
        'wnid,name\nn02119789,kit fox\nn01440764,"tench, Tinca tinca"\nn01443537,goldfish\n',
        ANIMALS,
    ),
    LabelForm(
        "CSV of quoted cells",
        '"ship","a ship"\n"car","a car, red"\n"dog","a dog"\n',
        ("a car, red", "a dog", "a ship"),
        WORDS,
    ),
    LabelForm(
        "prompts that begin with a number",
        "10 downing street\na dog\n2 ships\n",
        ("10 downing street", "a dog", "2 ships"),
        WORDS,
    ),
    LabelForm(
        "one prompt that begins with a folder's name",
        "car on a road\na dog\na ship\n",
        ("car on a road", "a dog", "a ship"),
        WORDS,
    ),
)
REFUSED = (
    LabelForm("wnids.txt: WordNet ids alone", "n01440764\nn01443537\nn02119789\n", "WordNet ids and no prompts"),
    LabelForm(
        "every line begins with its folder's name",
        "car on a road\ndog in a park\nship at sea\n",
        "may be the prompt",
        WORDS,
    ),
    LabelForm("numbers in no order before sentences", "2 cats\n3 dogs\n1 bird\n", "may be the prompt", WORDS),
    LabelForm("ImageNet's numbers from 1", _numbered(": ", 1), "ILSVRC2012_ID"),
    LabelForm(
        "a line without the key of the others",
        "n01440764 tench\ngoldfish\nn02119789 fox\n",
        "line 2 does not begin with a WordNet id",
    ),
    LabelForm("a key twice", _joined("\t") + "n01440764\ttrout\n", "given twice: n01440764"),
    LabelForm("a class without a line", "n01440764 tench\nn01443537 goldfish\n", "no prompt for: n02119789"),
    LabelForm("a folder that is not there", "car\ta\ndog\tb\nship\tc\nelk\td\n", "no such class folder: elk", WORDS),
    LabelForm("a number missing", "0: tench\n1: goldfish\n3: fox\n", "no 2"),
    LabelForm("JSON with a repeated key", '{"0": "a", "0": "b", "1": "c", "2": "d"}', "given twice: 0"),
    LabelForm("a Python dict with a repeated key", "{0: 'a', 1: 'b', 1: 'c'}", "given twice: 1"),
    LabelForm("class_to_idx: folders and ids", '{"n01440764": 0, "n01443537": 1, "n02119789": 2}', "no prompts"),
    LabelForm("JSON with other values", '{"0": {"name": "tench"}, "1": null, "2": "fox"}', "is no text"),
    LabelForm("half a JSON file", '{"0": "tench", "1":', "neither"),
    LabelForm("a Python expression", "{0: open('labels')}", "neither"),
    LabelForm("YAML of a detector", "names:\n  0: tench\n  1: goldfish\n  2: fox\n", "YAML"),
    LabelForm("UTF-16", "a\nb\nc\n".encode("utf-16"), "save it as UTF-8"),
    LabelForm("Latin-1", "café\nb\nc\n".encode("latin-1"), "not UTF-8"),
    LabelForm("a blank line between", "a car\n\na ship\n", "line 2 is blank", WORDS),
    LabelForm("too few lines", "a car\na dog\n", "2 prompts for 3 classes", WORDS),
    LabelForm("the folders' names in another order", "ship\ncar\ndog\n", "names the class ship", WORDS),
    LabelForm("sentences in another order", "a ship\na car\na dog\n", "names the class ship", WORDS),
    LabelForm("keys in other letters", "Ship: a boat\nCar: a van\nDog: a pet\n", "names the class ship", WORDS),
    LabelForm("keys at the end", "a boat,ship\na van,car\na pet,dog\n", "names the class ship", WORDS),
    LabelForm("keys with a slash", "ship/: a\ncar/: b\ndog/: c\n", "names the class ship", WORDS),
    LabelForm("keys in words", "sea ship: x\ncar: y\n", "names the class sea_ship", ("car", "sea_ship")),
    LabelForm("WordNet ids in capitals", "N02119789 fox\nN01440764 tench\nN01443537 goldfish\n", "class n02119789"),
    LabelForm("WordNet ids with a dash", "n02119789_fox\nn01440764_tench\nn01443537_goldfish\n", "class n02119789"),
    LabelForm("ImageNet's labels in another order", "goldfish\nkit fox\ntench\n", "names the class n01443537"),
    LabelForm("... two swapped, in sentences", "a goldfish\na photo of a tench\na fox\n", "names the class n01443537"),
    LabelForm("... by number", "0: goldfish\n1: tench\n2: kit fox\n", "names the class n01443537"),
    LabelForm("... shifted by one", "a fish\ntench\ngoldfish\n", "names the class n01440764"),
    LabelForm("two keys that differ", "0,dog,a\n1,car,b\n2,ship,c\n", "pairs car with dog", WORDS),
    LabelForm("an unknown separator", "ship ~> a\nsea ~> b\n", "may be the prompt", ("sea", "ship")),
    LabelForm("half of a separator", "0 ~ a van\n1 ~ a pet\n2 ~ a boat\n", "every prompt begins with ~", WORDS),
    LabelForm("HTML", "<li>a van</li>\n<li>a pet</li>\n<li>a boat</li>\n", "HTML", WORDS),
    LabelForm("an empty list", "[]", "0 prompts for 3 classes"),
    LabelForm("a right-to-left override", "a car\na \u202egod\na ship\n", "line 2.*U\\+202E", WORDS),
    LabelForm("a zero-width space", "a car\na\u200bdog\na ship\n", "line 2.*U\\+200B", WORDS),
    LabelForm("keys behind the labels", "tench n01440764\ngoldfish n01443537\nfox n02119789\n", "not at the start"),
)
