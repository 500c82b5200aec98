"""What a search measures on: a bounded number of calibration images, OOD images beside them, and the prompts of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.calib_data.index import DataIndex, build_index
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.sampling import OOD_LIST, refuse_overlap, write_calibration_list
from clipq.calib_data.source import Source
from clipq.calib_data.table import open_source
from clipq.engines.base import Tower
from clipq.evaluate.metrics.arrays import Array, Int64
from clipq.evaluate.zeroshot import prompts
from clipq.export.keep import KeepRequest, has_labels
from clipq.files import sha256_json
from clipq.progress import bar

IMAGES = 256  # of each kind: a share of images is then known to half a per cent, and a block of a ViT-B is measured in seconds
PROMPTS = 1024  # templates beyond this number of texts are left out, but never the first


@dataclass(frozen=True, slots=True, eq=False)
class SearchData:
    """The inputs of every measurement, always the same.

    Attributes:
        inputs: Tower to its inputs: pixels float32 ``(n + n_ood, 3, height, width)``, in a file and not in memory, and token ids
            ``(classes * templates, context length)``; no texts where the images have no class names.
        images: n, how many of the pixels are of calibration images; those behind them are OOD.
        labels: ``(n,)``, or None where an image has none.
        templates: Texts per class.
        facts: JSON: which data this is.
        digest: Hash that tells it from other data.
    """

    inputs: Mapping[Tower, Array]
    images: int
    labels: Int64 | None
    templates: int
    facts: Mapping[str, Any]
    digest: str


def load_data(request: KeepRequest, folder: Path) -> SearchData:
    """Decode the images once into a file and tokenise the prompts; write the list of OOD images into the bundle.

    Args:
        request: Whose calibration images, and how many of them at most.
        folder: For the file; it must outlive the data.

    Raises:
        DataError: Too many images are unreadable, or an OOD image is a calibration image.
    """
    recipe, source = request.recipe, request.calibration.source
    limit = min(IMAGES, recipe.calib_n)  # the same seed draws them first, so they are among the calibration images
    sets = [(source, build_index(source, limit=limit, seed=recipe.seed, sampling=recipe.calib_sampling))]
    if recipe.calib_ood:
        sets.append(_ood_set(request))
    pixels, rows = _decode(sets, request.preprocess, folder / "pixels.npy")
    templates = source.templates[: max(1, PROMPTS // max(1, len(source.classnames)))]
    inputs: dict[Tower, Array] = {"image": pixels}
    if source.classnames:
        inputs["text"] = request.tokenizer.tokens(prompts(source.classnames, templates))
    facts = {
        "calib": source.id,
        "images": len(rows[0]),
        "classes": len(source.classnames),
        "templates": len(templates),
        "calib_ood": sets[1][0].id if recipe.calib_ood else None,
        "ood_images": len(rows[1]) if recipe.calib_ood else 0,
    }
    labels = sets[0][1].labels[rows[0]] if has_labels(source) else None
    return SearchData(inputs, len(rows[0]), labels, len(templates), facts, sha256_json([facts, *(index.digest for _, index in sets)]))


def _ood_set(request: KeepRequest) -> tuple[Source, DataIndex]:
    source = open_source(request.recipe.calib_ood)
    index = build_index(source, limit=IMAGES, seed=request.recipe.seed)
    refuse_overlap(request.calibration.index.sha256, index)
    write_calibration_list(request.folder / OOD_LIST, index)
    return source, index


def _decode(sets: list[tuple[Source, DataIndex]], preprocess: Preprocess, path: Path) -> tuple[Array, list[Int64]]:
    """Return the pixels of all sets one behind the other, and for each set the rows of its index that could be decoded."""
    total = sum(len(index) for _, index in sets)
    pixels: npt.NDArray[np.float32] = np.lib.format.open_memmap(path, "w+", np.float32, (total, 3, *preprocess.size))
    rows: list[Int64] = []
    done = 0
    for source, index in sets:
        readable = []
        with bar(f"Decoding {source.id}", len(index)) as advance:
            for batch in batches(source, index, preprocess):
                pixels[done : done + len(batch.rows)] = batch.pixels
                done += len(batch.rows)
                readable.append(batch.rows)
                advance(len(batch.rows) + len(batch.skipped))
        rows.append(np.concatenate(readable))
    return pixels[:done], rows
