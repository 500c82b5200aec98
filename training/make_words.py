"""Writes the candidate words of NegLabel from WordNet 3.0's database files; see README.md beside this file."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

KINDS = {"nouns": ("noun", "1", 1), "adjectives": ("adj", "35", 2)}  # WordNet's name, its numbers in a sense key, the fewest tags
WORD = re.compile(r"[a-z]+(?:(?:['.]?[ -]|')[a-z]+)*")
SLUR = re.compile(r"ethnic slur|offensive (?:term|name|slang)|obscene (?:term|word)|disparaging term")


def tagged(counts: Path, parts: str) -> Counter[str]:
    """Return lemma -> how often it was tagged in WordNet's texts, over all of its senses of some parts of speech.

    Args:
        counts: ``cntlist.rev``: lines of sense key, sense number and tag count.
        parts: Numbers of the parts of speech.
    """
    found: Counter[str] = Counter()
    for line in counts.read_text(encoding="ascii").splitlines():
        key, _, count = line.split()
        lemma, _, rest = key.partition("%")
        if rest[0] in parts:
            found[lemma.replace("_", " ")] += int(count)
    return found


def slurs(folder: Path, name: str) -> set[str]:
    """Return the lemmas whose first sense, the usual one, WordNet calls a slur or obscene."""
    glosses = {line[:8]: line.partition("|")[2] for line in (folder / f"data.{name}").read_text(encoding="ascii").splitlines()}
    found = set()
    for line in (folder / f"index.{name}").read_text(encoding="ascii").splitlines():
        if not line.startswith(" "):
            lemma, _, senses, *rest = line.split()
            if SLUR.search(glosses[rest[-int(senses)]]):
                found.add(lemma.replace("_", " "))
    return found


def licence(data: Path) -> str:
    """Return the notice that stands, with numbered lines, at the head of a database file."""
    with data.open(encoding="ascii") as stream:
        head = [re.sub(r"^ +\d+ ?", "", line).rstrip() for line in stream if line.startswith("  ")]
    return "\n".join(head) + "\n"


def main() -> None:
    """Write ``nouns.txt``, ``adjectives.txt`` and the licence into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dict", type=Path, help="folder with cntlist.rev, index.* and data.* of WordNet 3.0")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "clipq" / "evaluate" / "words")
    args = parser.parse_args()
    for kind, (name, parts, least) in KINDS.items():
        counts, dropped = tagged(args.dict / "cntlist.rev", parts), slurs(args.dict, name)
        usual = {word for word, count in counts.items() if count >= least and len(word) > 2 and WORD.fullmatch(word)}
        (args.output / f"{kind}.txt").write_text("".join(f"{word}\n" for word in sorted(usual - dropped)), encoding="ascii")
        print(f"{kind}: {len(usual - dropped)} of {len(counts)}")
    (args.output / "LICENSE").write_text(licence(args.dict / "data.noun"), encoding="ascii")


if __name__ == "__main__":
    main()
