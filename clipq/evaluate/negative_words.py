"""Candidate words of NegLabel: usual nouns and adjectives of WordNet that are shipped, or a list of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from clipq.errors import DataError
from clipq.files import sha256_json
from clipq.progress import note

NOUN, ADJECTIVE = "the nice {c}", "This is a {c} photo"  # prompts 85 and 0 of NegLabel's class_names.py; classes are asked for like nouns
WORDNET = "WordNet 3.0, tagged words"


@dataclass(frozen=True, slots=True)
class Words:
    """Candidates.

    Attributes:
        source: Where they come from: ``WORDNET`` or a file.
        nouns: Each once.
        adjectives: Those that are no nouns too; none in a list of the user's own.
    """

    source: str
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...] = ()

    @property
    def prompts(self) -> list[str]:
        """What the text towers embed: the nouns, then the adjectives."""
        return [NOUN.replace("{c}", word) for word in self.nouns] + [ADJECTIVE.replace("{c}", word) for word in self.adjectives]

    def describe(self) -> dict[str, Any]:
        """Return what provenance says of them."""
        return {
            "source": self.source,
            "nouns": len(self.nouns),
            "adjectives": len(self.adjectives),
            "sha256": sha256_json([self.nouns, self.adjectives]),
        }


def shipped_words() -> Words:
    """Return the words of ``clipq/evaluate/words``, which ``training/make_words.py`` wrote."""
    folder = resources.files("clipq") / "evaluate" / "words"
    nouns, adjectives = ((folder / f"{kind}.txt").read_text(encoding="ascii").splitlines() for kind in ("nouns", "adjectives"))
    known = frozenset(nouns)
    return Words(WORDNET, tuple(nouns), tuple(word for word in adjectives if word not in known))


def read_words(path: Path) -> Words:
    """Return the nouns of a file, one per line; empty lines and repetitions are left out, and repetitions are told.

    Raises:
        DataError: The file cannot be read, is no text, or has no word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the negative words in {path}", found=error, expected="UTF-8 text, a word per line") from error
    words = [word for line in lines if (word := " ".join(line.split()))]
    if not words:
        raise DataError(f"{path} has no negative words", found=f"{len(lines)} empty lines", expected="a word per line")
    unique = tuple(dict.fromkeys(words))
    if len(unique) < len(words):
        note(f"{path}: {len(words) - len(unique)} of {len(words)} negative words stand there more than once and count once")
    return Words(str(path), unique)
