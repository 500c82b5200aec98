"""The pairs that a tower is trained on: images with a caption each, some of them held out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.calib_data.captions import CAPTIONED, Captioned, open_captioned
from clipq.calib_data.index import DataIndex, build_index
from clipq.calib_data.pipeline import pixels_of
from clipq.calib_data.preprocess import Preprocess, UInt8
from clipq.calib_data.sampling import TRAINING_LIST, write_calibration_list
from clipq.calib_data.source import Source
from clipq.calib_data.table import SOURCES, open_source
from clipq.calib_data.tokenizer import Tokenizer
from clipq.engines.base import Float32
from clipq.engines.torch.checkpoint import Checkpoint
from clipq.errors import DataError
from clipq.progress import bar
from clipq.recipe import Recipe

FOLDER = "training"  # in the bundle to be, gone when the manifest stands
HELD_OUT = 6  # one pair of so many is not trained on
_LEAST_HELD_OUT = 8
_BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Images and captions, each pair once; those that are held out stand last.

    Attributes:
        pixels: uint8 ``(n, 3, height, width)``, in a file.
        tokens: int32 ``(n, context length)``, of each image's caption.
        groups: int64 ``(n,)``, equal where captions are.
        trained: How many are trained on.
        candidates: int32 ``(m, context length)``: the texts among which a held-out image finds its nearest: every class in the first
            template, or the captions that are held out.
        right: int64 ``(n - trained,)``, which of them is right; None where images have captions and no class.
        images: FP32's embeddings of the images, unit length, ``(n, d)``.
        texts: Those of the captions, ``(n, d)``.
        answers: Those of the candidates, ``(m, d)``.
    """

    pixels: UInt8
    tokens: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int64]
    trained: int
    candidates: npt.NDArray[np.int32]
    right: npt.NDArray[np.int64] | None
    images: Float32
    texts: Float32
    answers: Float32


class TrainingData:
    """The training data of a recipe: opened at once, read when it is needed.

    Raises:
        UsageError: The data id is unknown.
        DataError: The data has neither captions nor class names, or images without a class.
    """

    def __init__(self, recipe: Recipe, folder: Path, preprocess: Preprocess) -> None:
        self._recipe, self._folder, self._preprocess = recipe, folder, preprocess
        self._captioned = _open(recipe.qat_data or recipe.calib)
        self.source: Source = self._captioned.source if isinstance(self._captioned, Captioned) else self._captioned
        self._index: DataIndex | None = None
        self._pairs: Pairs | None = None

    @property
    def index(self) -> DataIndex:
        """The chosen images, in the order of the source; the first use reads and hashes them."""
        if self._index is None:
            limit = self._recipe.qat_pairs * HELD_OUT // (HELD_OUT - 1)
            self._index = build_index(self.source, limit=limit, seed=self._recipe.seed)
        return self._index

    def write_list(self) -> dict[str, Any]:
        """Write the list of the images, held-out ones too, and return what was chosen.

        Raises:
            DataError: There are too few.
        """
        captions = self._captions()
        self._check(captions)
        write_calibration_list(self._folder / TRAINING_LIST, self.index)
        held = _held_out(len(self.index))
        return {
            "data": self.source.id,
            "pairs": len(self.index) - held,
            "held_out": held,
            "captions": len(set(captions)),
            "digest": self.index.digest,
        }

    def pairs(self, checkpoint: Checkpoint, digest: str) -> Pairs:
        """Return the pairs with FP32's embeddings; the first use decodes them into a file and runs the model once.

        Args:
            checkpoint: The FP32 model.
            digest: What ``write_list`` said; a resumed export must see the same images.

        Raises:
            DataError: The images have changed, or one of them is unreadable.
        """
        if self.index.digest != digest:
            raise DataError(f"the images of {self.source.id} changed during the export", fix="Export into another folder.")
        if self._pairs is None:
            self._pairs = self._make(checkpoint)
        return self._pairs

    def clear(self) -> None:
        """Remove what training left in the bundle to be."""
        self._pairs = None
        shutil.rmtree(self._folder / FOLDER, ignore_errors=True)

    def _make(self, checkpoint: Checkpoint) -> Pairs:
        order = np.random.default_rng(self._recipe.seed).permutation(len(self.index))
        trained = len(order) - _held_out(len(order))
        captions = [self._captions()[row] for row in order]
        _, groups = np.unique(captions, return_inverse=True)
        tokenizer = Tokenizer.from_files(self._folder / "tokenizer")
        candidates, right = self._candidates(order, trained, captions)
        pixels, tokens, answers = self._pixels(order), tokenizer.tokens(captions), tokenizer.tokens(candidates)
        with bar("Embedding the training pairs", len(pixels)) as advance:
            images = [_unit(checkpoint.embed("image", self.normalised(rows, advance))) for rows in _blocks(pixels)]
        return Pairs(
            pixels=pixels,
            tokens=tokens,
            groups=groups.astype(np.int64).reshape(-1),
            trained=trained,
            candidates=answers,
            right=right,
            images=np.concatenate(images),
            texts=np.concatenate([_unit(checkpoint.embed("text", rows)) for rows in _blocks(tokens)]),
            answers=np.concatenate([_unit(checkpoint.embed("text", rows)) for rows in _blocks(answers)]),
        )

    def normalised(self, pixels: UInt8, advance: Any = lambda _rows: None) -> Float32:
        """Return what the model reads of some pixels."""
        advance(len(pixels))
        return self._preprocess.normalise(pixels)

    def _captions(self) -> list[str]:
        """Return a caption of each image: one of its own, or its class in one of the templates, drawn by the seed."""
        draws = np.random.default_rng(self._recipe.seed).random(len(self.index))
        if isinstance(self._captioned, Captioned):
            known = [self._captioned.captions[position] for position in self.index.positions]
            return [texts[int(draw * len(texts))] for texts, draw in zip(known, draws, strict=True)]
        names, templates = self.source.classnames, self.source.templates
        return [templates[int(draw * len(templates))].format(c=names[label]) for label, draw in zip(self.index.labels, draws, strict=True)]

    def _candidates(self, order: npt.NDArray[Any], trained: int, captions: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64] | None]:
        if isinstance(self._captioned, Captioned):
            return sorted(set(captions[trained:])), None
        texts = [self.source.templates[0].format(c=name) for name in self.source.classnames]
        return texts, self.index.labels[order[trained:]]

    def _check(self, captions: Sequence[str]) -> None:
        left, batch = len(captions) - _held_out(len(captions)), self._recipe.qat_batch
        if left < batch or len(set(captions)) < 2:
            raise DataError(
                f"too few pairs to train on in {self.source.id}",
                found=f"{left} with {len(set(captions))} captions, {len(captions) - left} held out",
                expected=f"at least a batch of {batch} with two captions",
                fix="Name more with --qat-data, or make --qat-batch smaller.",
            )

    def _pixels(self, order: npt.NDArray[Any]) -> UInt8:
        """Return the pixels of the chosen images in a shuffled order, from a file that a killed run may have left."""
        path = self._folder / FOLDER / f"pixels-{self.index.digest[:16]}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"part-{path.name}")
            shape = (len(order), 3, *self._preprocess.size)
            pixels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
            where = np.argsort(order)
            with bar(f"Decoding {self.source.id}", len(order)) as advance:
                for row, sample in enumerate(self.source.read(self.index.positions.tolist())):
                    pixels[where[row]] = self._decoded(sample)
                    advance(1)
            pixels.flush()
            part.replace(path)
        stored: UInt8 = np.load(path, mmap_mode="r")
        return stored

    def _decoded(self, sample: Any) -> UInt8:
        try:
            return pixels_of(sample, self._preprocess)
        except Exception as error:  # Pillow raises many kinds on broken bytes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{sample.id} of {self.source.id} cannot be trained on", found=reason, fix="Repair or remove it.") from error


def _open(data_id: str) -> Captioned | Source:
    scheme = data_id.partition(":")[0]
    if scheme in SOURCES and not data_id.startswith("synthetic:scenes-captions"):
        source = open_source(data_id)
        if source.classnames:
            if (source.labels < 0).any():
                raise DataError(f"{source.id} has images without a class", fix="Train on others, named with --qat-data.")
            return source
        if scheme not in CAPTIONED:
            raise DataError(f"{source.id} has neither captions nor class names to train with", fix="Name others with --qat-data.")
    return open_captioned(data_id)


def _held_out(count: int) -> int:
    return max(count // HELD_OUT, min(_LEAST_HELD_OUT, count // 2))


def _blocks(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]


def _unit(embeddings: Float32) -> Float32:
    unit: Float32 = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit
