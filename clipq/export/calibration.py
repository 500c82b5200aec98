"""Calibration inputs of an export: which images, and the batches that static quantization reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.calib_data.imagenet import imagenet_classes
from clipq.calib_data.index import DataIndex, build_index
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.sampling import write_calibration_list
from clipq.calib_data.source import Source
from clipq.calib_data.tokenizer import Tokenizer
from clipq.engines.base import Tower
from clipq.errors import DataError
from clipq.progress import bar
from clipq.recipe import Recipe

_BATCH = 8  # large enough for full speed on a CPU, small enough for the activations of a ViT-L


class Calibration:
    """The calibration data of a recipe, read when it is needed."""

    def __init__(self, source: Source, recipe: Recipe, folder: Path, preprocess: Preprocess) -> None:
        self.source = source
        self._recipe = recipe
        self._folder = folder
        self._preprocess = preprocess
        self._index: DataIndex | None = None

    @property
    def index(self) -> DataIndex:
        """The chosen images; the first use reads and hashes them."""
        if self._index is None:
            recipe = self._recipe
            self._index = build_index(self.source, limit=recipe.calib_n, seed=recipe.seed, sampling=recipe.calib_sampling)
        return self._index

    def write_list(self) -> dict[str, Any]:
        """Write ``calibration.csv`` and return what was chosen."""
        write_calibration_list(self._folder / "calibration.csv", self.index)
        return {"data": self.source.id, "images": len(self.index), "digest": self.index.digest}

    def inputs(self, tower: Tower, digest: str) -> Iterator[npt.NDArray[Any]]:
        """Yield batches of a tower's inputs: pixels of the images, or tokens of captions made from their class names.

        Args:
            tower: ``image`` or ``text``.
            digest: What ``write_list`` said; a resumed export must see the same images.

        Raises:
            DataError: The images have changed, too many are unreadable, or there are no class names to make captions from.
        """
        if self.index.digest != digest:
            raise DataError(f"the images of {self.source.id} changed during the export", fix="Export into another folder.")
        return self._pixels() if tower == "image" else self._tokens()

    def _pixels(self) -> Iterator[npt.NDArray[Any]]:
        with bar("Calibrating the image tower", len(self.index)) as advance:
            for batch in batches(self.source, self.index, self._preprocess, batch_size=_BATCH):
                if len(batch.pixels):
                    yield batch.pixels
                advance(len(batch.pixels) + len(batch.skipped))

    def _tokens(self) -> Iterator[npt.NDArray[Any]]:
        tokenizer, captions = Tokenizer.from_files(self._folder / "tokenizer"), self._captions()
        with bar("Calibrating the text tower", len(captions)) as advance:
            for start in range(0, len(captions), _BATCH):
                texts = captions[start : start + _BATCH]
                yield tokenizer.tokens(texts)
                advance(len(texts))

    def _captions(self) -> list[str]:
        """Return ``calib_n`` captions, each class name in each template, drawn by the recipe's seed.

        A few classes in a few templates are a few words, and ranges of a few words cut off others: what is missing to ``calib_n`` are
        ImageNet's class names in the same templates.
        """
        if not self.source.classnames:
            raise DataError(f"{self.source.id} has no class names to calibrate the text tower with", fix="Use --towers image.")
        draws, captions = np.random.default_rng(self._recipe.seed), list[str]()
        for names in (self.source.classnames, [known.name for known in imagenet_classes()]):
            texts = [template.format(c=name) for name in names for template in self.source.templates]
            captions += [texts[position] for position in draws.permutation(len(texts))]
        return list(dict.fromkeys(captions))[: self._recipe.calib_n]
