"""Writes d4m_fast/assets/labels/imagenet-1k.tsv; run by hand, the same inputs give the same bytes.

    python tools/make_labels.py --synsets imagenet_synsets.txt --lemmas imagenet_synset_to_lemma.txt \
        --official imagenet_classes.txt --out d4m_fast/assets/labels/imagenet-1k.tsv

Each row is `wnid<TAB>label line`, in class order (ascending WordNet ids), and has a third column, the line of the
published D4M code, only where that differs. The README beside the table says where the inputs come from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

CLASSES = 1000


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def rows(synsets: list[str], lemmas: dict[str, str], official: list[str]) -> list[str]:
    if synsets != sorted(set(synsets)) or len(synsets) != CLASSES or len(official) != CLASSES:
        raise SystemExit(f"expected {CLASSES} sorted WordNet ids and as many official lines")
    return [row(wnid, lemmas[wnid], theirs) for wnid, theirs in zip(synsets, official, strict=True)]


def row(wnid: str, label: str, theirs: str) -> str:
    return "\t".join([wnid, label] if label == theirs else [wnid, label, theirs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("synsets", "lemmas", "official", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    lemmas = dict(line.split("\t", 1) for line in lines(args.lemmas))
    table = rows(lines(args.synsets), lemmas, lines(args.official))
    args.out.write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
