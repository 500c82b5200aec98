"""The draws: which images of each source every calibration set has, none of them a test image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from clipq.calib_data.index import DataIndex, Int64, choose_positions, index_positions
from clipq.calib_data.sampling import refuse_overlap
from clipq.calib_data.source import Source
from clipq.calib_data.table import open_source
from clipq.calibration_lab.options import LabOptions
from clipq.errors import UsageError
from clipq.evaluate.metrics.arrays import Bool
from clipq.files import sha256_json


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Every image of one source that any draw has.

    Attributes:
        source: The source.
        index: Those images, each once.
        rows: (number of images, seed) -> rows of the index, ascending. With one seed, a smaller set is part of every larger one.
    """

    source: Source
    index: DataIndex
    rows: Mapping[tuple[int, int], Int64]

    def readable_rows(self, n: int, seed: int, readable: Bool) -> Int64:
        """Return the rows of a draw without the images that could not be decoded."""
        rows = self.rows[n, seed]
        return rows[readable[rows]]

    def digest(self, rows: Int64) -> str:
        """Return the hash of the images at some rows."""
        return sha256_json([self.index.sha256[row] for row in rows.tolist()])

    def shared(self, n: int) -> float:
        """Return the mean share of the images of a draw that another draw of ``n`` has too, in [0, 1]; 1 where all draws are equal."""
        draws = [rows for (number, _), rows in self.rows.items() if number == n]
        return float(np.mean([len(np.intersect1d(*pair)) for pair in combinations(draws, 2)])) / n


def draw_pool(data_id: str, options: LabOptions, tested: Collection[DataIndex]) -> Pool:
    """Draw all calibration sets of one source and hash their images in one pass.

    Args:
        data_id: The source.
        options: Numbers of images and draws.
        tested: What the draws are judged on.

    Raises:
        UsageError: There are fewer images than a draw needs, or the data id is unknown.
        DataError: A drawn image is among those that it would be judged on.
    """
    source = open_source(data_id)
    largest = options.numbers[-1]
    if largest > len(source):
        raise UsageError(
            f"--calib-n asks for more images than {source.id} has", found=largest, expected=f"at most {len(source)}", fix="Lower --calib-n."
        )
    chosen = {
        (n, seed): choose_positions(source.labels, limit=n, seed=seed, sampling="random") for n in options.numbers for seed in options.draws
    }
    union = np.unique(np.concatenate(list(chosen.values())))
    index = index_positions(source, union)
    for judged in tested:
        refuse_overlap(index.sha256, judged)
    return Pool(source, index, {key: np.searchsorted(union, positions) for key, positions in chosen.items()})


def describe_pool(pool: Pool, readable: Bool, options: LabOptions) -> dict[str, Any]:
    """Return what the record says of a source and its draws."""
    rows = {key: pool.readable_rows(*key, readable) for key in pool.rows}
    return {
        "id": pool.source.id,
        "size": len(pool.source),
        "images": len(pool.index),
        "sha256": pool.index.digest,
        "skipped": [pool.index.ids[row] for row in np.flatnonzero(~readable)],
        "shared": {str(n): pool.shared(n) for n in options.numbers},
        "draws": [{"n": n, "seed": seed, "images": len(own), "sha256": pool.digest(own)} for (n, seed), own in rows.items()],
    }
