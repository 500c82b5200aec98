"""NegLabel in an evaluation: which words are negative for a data set's classes, and every engine's score of every image beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipq.engines.base import Float32
from clipq.errors import DataError, UsageError
from clipq.evaluate.metrics.arrays import Float64, Int64, Matrix
from clipq.evaluate.metrics.neglabel import GROUPS, QUANTILE, TEMPERATURE, choose_negatives, neglabel
from clipq.evaluate.negative_words import ADJECTIVE, NOUN, Words, read_words, shipped_words
from clipq.evaluate.store import Store
from clipq.evaluate.zeroshot import cosines, l2_normalised, prompts
from clipq.files import sha256_json

ROWS = 1024  # images whose cosines with all negative words are in memory at once
WORDS = "NegLabel's words"


@dataclass(frozen=True, slots=True)
class NegLabelOptions:
    """How NegLabel is computed; the defaults are those of the paper's code.

    Attributes:
        words: File of candidate words; None for those that are shipped.
        share: Share of the nouns, and of the adjectives, that are taken: those farthest from all classes.
        quantile: Of a word's cosines with the classes: how near it is.
        groups: Into how many groups the negatives are cut.
        temperature: Applied to cosines.
        seed: Of the shuffle before they are cut.
    """

    words: Path | None = None
    share: float = 0.15
    quantile: float = QUANTILE
    groups: int = GROUPS
    temperature: float = TEMPERATURE
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError("--negative-share is wrong", found=self.share, expected="a share above 0, up to 1")
        if self.groups < 1:
            raise UsageError("--negative-groups is wrong", found=self.groups, expected="1 or more")


@dataclass(frozen=True, slots=True)
class NegLabelPlan:
    """What is known before anything is embedded."""

    options: NegLabelOptions
    words: Words

    @classmethod
    def of(cls, options: NegLabelOptions) -> NegLabelPlan:
        """Read the candidate words.

        Raises:
            DataError: The list is unusable, or too short for the groups.
        """
        plan = cls(options, shipped_words() if options.words is None else read_words(options.words))
        if sum(plan.numbers) < options.groups:
            raise DataError(
                f"too few negative words in {plan.words.source}",
                found=f"{sum(plan.numbers)} ({100 * options.share:g} % of {len(plan.words.prompts)}) for {options.groups} groups",
                expected="a word or more per group",
                fix="Name more words with --negative-words, or take a larger --negative-share or fewer --negative-groups.",
            )
        return plan

    @property
    def numbers(self) -> tuple[int, int]:
        """How many nouns and adjectives are taken, rounded down as the paper's code does."""
        return int(len(self.words.nouns) * self.options.share), int(len(self.words.adjectives) * self.options.share)

    def texts(self, classnames: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Return name -> texts to embed: the words, and each data set's classes in the words' own prompt."""
        return {WORDS: self.words.prompts} | {classes_of(data): prompts(names, [NOUN]) for data, names in classnames.items()}

    def mine(self, words: Float32, classes: Float32) -> Int64:
        """Return the negatives for some classes, as rows of the words, nouns first: each kind is mined apart.

        Args:
            words: The baseline's embeddings of the words, unit vectors ``(words, dim)``.
            classes: The baseline's embeddings of the classes, unit vectors ``(classes, dim)``.
        """
        first = len(self.words.nouns)
        kinds = zip((words[:first], words[first:]), (0, first), self.numbers, strict=True)
        found = [start + choose_negatives(part, classes, number, quantile=self.options.quantile) for part, start, number in kinds if number]
        return np.concatenate(found)


@dataclass(frozen=True, slots=True, eq=False)
class Negatives:
    """The negative words of every ID data set, chosen once by the baseline, so that all engines have the same.

    Attributes:
        plan: Options and candidates.
        baseline: The engine whose text tower chose.
        stores: Name of ``NegLabelPlan.texts`` -> engine id -> store.
        chosen: ID data set -> rows of the words.
    """

    plan: NegLabelPlan
    baseline: str
    stores: Mapping[str, Mapping[str, Store]]
    chosen: Mapping[str, Int64]

    @classmethod
    def mined(cls, plan: NegLabelPlan, baseline: str, data_ids: Sequence[str], stores: Mapping[str, Mapping[str, Store]]) -> Negatives:
        """Choose the negatives of every ID data set; data sets with the same classes are mined once."""
        words = l2_normalised(stores[WORDS][baseline].read(), f"{WORDS} with {baseline}")
        found: dict[Path, Int64] = {}
        for data in data_ids:
            store = stores[classes_of(data)][baseline]
            if store.folder not in found:
                found[store.folder] = plan.mine(words, l2_normalised(store.read(), f"{classes_of(data)} with {baseline}"))
        return cls(plan, baseline, stores, {data: found[stores[classes_of(data)][baseline].folder] for data in data_ids})

    def scores(self, engine_id: str, images: Matrix, data: str) -> Float64:
        """Return an engine's NegLabel scores, ``(n,)``, higher = more OOD; cosines are taken of a block of images at a time.

        Args:
            engine_id: The engine.
            images: Its raw embeddings, float32 ``(n, dim)``.
            data: The ID data set whose classes are asked for.
        """
        options, what = self.plan.options, f"NegLabel of {data} with {engine_id}"
        classes = l2_normalised(self.stores[classes_of(data)][engine_id].read(), what)
        negatives = l2_normalised(self.stores[WORDS][engine_id].read()[self.chosen[data]], what)
        parts = [images[start : start + ROWS] for start in range(0, len(images), ROWS)]
        settings: dict[str, Any] = {"temperature": options.temperature, "groups": options.groups, "seed": options.seed}
        return np.concatenate([neglabel(cosines(part, classes, what), cosines(part, negatives, what), **settings) for part in parts])

    def describe(self) -> dict[str, Any]:
        """Return ``report["provenance"]["neglabel"]``; the hash of the chosen words tells runs with other negatives apart."""
        words = (*self.plan.words.nouns, *self.plan.words.adjectives)
        options = {name: value for name, value in asdict(self.plan.options).items() if name != "words"}
        return {
            "words": self.plan.words.describe(),
            "prompts": {"nouns and classes": NOUN, "adjectives": ADJECTIVE},
            **options,
            "chosen_by": self.baseline,
            "chosen": {
                data: {"words": len(rows), "sha256": sha256_json([words[row] for row in rows])} for data, rows in self.chosen.items()
            },
        }


def classes_of(data: str) -> str:
    """Return the name of a data set's class texts for NegLabel."""
    return f"NegLabel's classes of {data}"
