"""Which corruptions an evaluation adds to its data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipq.calib_data.corruptions.table import CORRUPTIONS, FIFTEEN, SEVERITIES, check_corruption
from clipq.errors import UsageError, unknown_name
from clipq.evaluate.robustness.noise import REFERENCES, Reference

GROUPS = {"15": FIFTEEN, "19": tuple(CORRUPTIONS), "all": tuple(CORRUPTIONS)}


@dataclass(frozen=True, slots=True)
class NoiseOptions:
    """Corruptions of every labelled data set.

    Attributes:
        corruptions: Their names.
        severities: 1 to 5.
        reference: What the errors of mCE are divided by.

    Raises:
        UsageError: A name or severity is unknown, none or one twice is named, or AlexNet's errors would be of other pictures.
    """

    corruptions: tuple[str, ...] = FIFTEEN
    severities: tuple[int, ...] = SEVERITIES
    reference: Reference = "baseline"

    def __post_init__(self) -> None:
        for listed in (self.corruptions, self.severities):
            if not listed or len(set(listed)) != len(listed):
                raise UsageError("corruptions are wrong", found=listed, expected="one or more, each once")
        for name in self.corruptions:
            for severity in self.severities:
                check_corruption(name, severity)
        if self.reference not in REFERENCES:
            raise unknown_name("reference of mCE", self.reference, REFERENCES)
        whole = set(self.corruptions) >= set(FIFTEEN) and set(self.severities) == set(SEVERITIES)
        if self.reference == "alexnet" and not whole:
            raise UsageError(
                "AlexNet's errors are means over fifteen corruptions at five severities",
                found=f"{len(self.corruptions)} corruptions at severities {', '.join(map(str, self.severities))}",
                fix="Ask for --corruptions 15 --severities 1,2,3,4,5, or leave --mce-reference at baseline.",
            )


def read_corruptions(names: Sequence[str]) -> tuple[str, ...]:
    """Return the corruptions that names and groups (``15``, ``19``, ``all``) stand for, each once.

    >>> read_corruptions(["fog", "snow"]), len(read_corruptions(["15", "spatter"]))
    (('fog', 'snow'), 16)
    """
    return tuple(dict.fromkeys(name for asked in names for name in GROUPS.get(asked, (asked,))))


def read_severities(texts: Sequence[str]) -> tuple[int, ...]:
    """Return severities as numbers, ascending.

    Raises:
        UsageError: One is none of 1 to 5.
    """
    for text in texts:
        if text not in map(str, SEVERITIES):
            raise UsageError("wrong severity", found=text, expected="1, 2, 3, 4 or 5, with commas between them")
    return tuple(sorted(map(int, texts)))
