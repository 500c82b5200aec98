"""Texts on which an exported tokenizer must agree with open_clip's: class names in templates, odd strings, texts that are too long."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_NAMES = 500
_TEMPLATES = ("{c}", "a photo of a {c}.", "itap of my {c}!", "a bad photo of the {c}, 2 of them")
_LONG = ("word ", "supercalifragilistic ", "x", "1 ", "\u732b ", "don't ")
_NAMES = (
    "tench",
    "goldfish",
    "great white shark",
    "hen",
    "house finch",
    "electric ray",
    "Italian Greyhound",
    "St. Bernard",
    "Appenzeller Sennenhund",
    "chain saw",
    "French horn",
    "cassette player",
    "English springer",
    "garbage truck",
    "T-shirt",
    "jack-o'-lantern",
    "crane (bird)",
    "maillot, one-piece",
    "carpenter's kit",
    "bow tie / bow-tie",
    "iPod",
    "CD player",
    "ping-pong ball",
    "rock 'n' roll",
    "Boeing 737-800",
    "2012 Audi S5 Coupe",
    "black-and-white",
    "zig-zagged",
    "annual crop land",
    "x-ray of a chest",
    "person's",
    "they'll",
    "I'm",
    "we've",
    "don't",
    "you'd",
    "they're",
    "A&W root beer",
)
_ODD = (
    "",
    " ",
    "  leading and trailing  ",
    "tab\tand\nnewline",
    "UPPER lower MiXeD",
    "a_b_c__d",
    "...?!,;:--",
    "<end_of_text> inside",
    "#hashtag @name $5 50%",
    "&lt;b&gt; &amp;amp;amp; &eacute;",
    "salt & pepper",
    "caf\u00e9 na\u00efve \u00dcber stra\u00dfe",
    "\u2018quoted\u2019 \u201ctext\u201d",
    "\u5199\u771f \u732b",
    "\u0444\u043e\u0442\u043e \u043a\u043e\u0448\u043a\u0438",
    "\u0635\u0648\u0631\u0629",
    "\U0001f600 a smile \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u00c3\u00a9",
    "\uff21\uff22\uff23 \u00bd \u2460",
    "123 4567 8.9e10",
    "a\u00a0b\u3000c",
    "e\u0301",
    "\u0130stanbul \u1e9e",
    "http://example.org/?q=1&r=2",
)


def probe_texts(classnames: Sequence[str] = ()) -> list[str]:
    """Return the texts to compare: the first 500 class names and built-in ones in four templates, odd strings, and long ones.

    >>> len(probe_texts(["heron"])) - len(probe_texts())
    4
    """
    names = [*classnames[:_MAX_NAMES], *_NAMES]
    return [template.format(c=name) for name in names for template in _TEMPLATES] + [*_ODD, *(text * 60 for text in _LONG)]
