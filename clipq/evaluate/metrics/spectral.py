"""Where in the spectrum of the features damage lies: rank by rank of their SVD, ring by ring of their 2D Fourier transform."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_labels, as_matrix, as_vector, blocks

Band = tuple[int, int]
_FIRST_BAND = 8


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Principal axes of features ``X (n, dim)``: the SVD of ``X - mean``, by way of its ``dim x dim`` covariance.

    Centred, because all embeddings of a model share a large mean: without that, rank 0 is the mean, holds most of the energy and tells no
    image from another.

    Attributes:
        mean: ``(dim,)``.
        basis: ``(dim, dim)``: column k is the right singular vector of rank k.
        singular_values: ``(dim,)``, 0 or more, largest first.
        rank: How many of them are beyond rounding; ``basis`` means nothing from there on. At most ``min(n - 1, dim)``.
    """

    mean: Float64
    basis: Float64
    singular_values: Float64
    rank: int

    def coordinates(self, features: Array) -> Float64:
        """Return features ``(n, dim)`` in these axes, ``(features - mean) @ basis``, float64."""
        return np.asarray((features - self.mean) @ self.basis)


def spectrum(features: Array) -> Spectrum:
    """Return the principal axes of features in float64; beyond the features, memory does not grow with their number.

    Args:
        features: ``(n, dim)``, n at least 2.

    Raises:
        DataError: There are fewer than 2 rows, a value is not finite, or all rows are the same.

    >>> spectrum(np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).singular_values.round(6).tolist()
    [4.242641, 1.414214]
    """
    matrix = as_matrix(features, "features")
    n, dim = matrix.shape
    mean = matrix.mean(axis=0, dtype=np.float64)
    covariance = _sum_of_products(matrix, mean)
    energy, basis = np.linalg.eigh(covariance)
    energy, basis = np.maximum(energy[::-1], 0.0), np.ascontiguousarray(basis[:, ::-1])
    floor = max(n, dim) * np.finfo(np.float64).eps * max(float(energy[0]), float(mean @ mean))
    rank = min(int((energy > floor).sum()), n - 1)
    if rank == 0:
        raise DataError("features have no spectrum", found=f"{n} rows, all the same", expected="rows that differ")
    return Spectrum(mean, basis, np.sqrt(energy), rank)


def rank_bands(rank: int) -> list[Band]:
    """Return bands [first, end) over the ranks 0 to ``rank``: eight, and from there each twice as far as the one before.

    >>> rank_bands(50)
    [(0, 8), (8, 16), (16, 32), (32, 50)]
    """
    edges = [0, _FIRST_BAND]
    while edges[-1] < rank:
        edges.append(2 * edges[-1])
    return [(low, min(high, rank)) for low, high in itertools.pairwise(edges)]


def effective_rank(singular_values: Array) -> float:
    """Return how many directions the energy is spread over, in [1, dim]: ``exp(-sum p log p)``, ``p = s / sum(s)``.

    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality" (EUSIPCO), definition 1.

    Args:
        singular_values: ``(dim,)``, none below 0.

    Raises:
        DataError: One is negative, or all are 0.

    >>> round(effective_rank(np.array([2.0, 2.0, 2.0, 0.0])), 6)
    3.0
    """
    values = as_vector(singular_values, "singular values")
    if values.min() < 0 or values.max() == 0:
        raise DataError("no effective rank", found=f"singular values of {values.min():.3g} to {values.max():.3g}", expected="0 or more")
    shares = values[values > 0] / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def sqnr_by_rank(reference: Array, quantized: Array, bands: Sequence[Band], axes: Spectrum | None = None) -> Float64:
    """Return the signal-to-quantization-noise ratio in dB of each band of ranks of the reference, ``(bands,)``; infinite without noise.

    Both are projected on the axes of the reference. The signal of rank k is its energy there, ``s_k^2``; the noise is that of
    ``quantized - reference``, which is not centred: a shift common to all images is noise too.
    ``10 log10(sum_k signal_k / sum_k noise_k)`` over the band.

    Args:
        reference: Features ``(n, dim)`` of the unquantized engine.
        quantized: Those of the quantized engine for the same samples.
        bands: Ranks [first, end), each within the rank of the reference.
        axes: ``spectrum(reference)``, if it is known.

    Raises:
        DataError: The shapes differ, a value is not finite, the reference rows are all the same, or a band leaves the rank.

    >>> reference = np.array([[10.0, 0.0], [-10.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> sqnr_by_rank(reference, reference + [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [(0, 1), (1, 2)]).round(2).tolist()
    [inf, 3.01]
    """
    before, after = as_matrix(reference, "reference features"), as_matrix(quantized, "quantized features")
    if before.shape != after.shape:
        raise DataError("reference and quantized differ in shape", found=f"{before.shape} and {after.shape}", expected="the same samples")
    axes = axes or spectrum(before)
    _check_bands(bands, axes.rank)
    noise = _noise(before, after, axes.basis)
    signal = axes.singular_values**2
    ratios = np.array([_ratio(signal[low:high].sum(), noise[low:high].sum()) for low, high in bands])
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(ratios))


def singular_ratio_by_rank(reference: Spectrum, quantized: Spectrum, bands: Sequence[Band]) -> Float64:
    """Return root-mean-square singular value of the quantized features over that of the reference, per band, ``(bands,)``, 0 or more.

    Each has axes of its own here, so this compares how energy is spread, not where it points: below 1 the band was dampened, above 1
    quantization put energy there.

    Args:
        reference: Of the unquantized engine.
        quantized: Of the quantized one.
        bands: Ranks [first, end), each within the rank of the reference.

    Raises:
        DataError: The dimensions differ, or a band leaves the rank.
    """
    if len(reference.singular_values) != len(quantized.singular_values):
        found = f"{len(reference.singular_values)} and {len(quantized.singular_values)}"
        raise DataError("reference and quantized differ in dimension", found=found, expected="features of the same layer")
    _check_bands(bands, reference.rank)
    before, after = (spectrum.singular_values**2 for spectrum in (reference, quantized))
    return np.array([np.sqrt(after[low:high].sum() / before[low:high].sum()) for low, high in bands])


def accuracy_by_rank(features: Array, labels: Array, classes: Array, bands: Sequence[Band], axes: Spectrum) -> Float64:
    """Return the share of right answers that each band of ranks gives alone, ``(bands,)``, in [0, 1].

    Of each feature only its coordinates in the band are kept, added to the mean; the answer is the class with the largest product.
    Which ranks carry the answers, where ``sqnr_by_rank`` tells which ranks carry the noise.

    Args:
        features: ``(n, dim)``.
        labels: Right classes ``(n,)``.
        classes: A vector per class ``(classes, dim)``.
        bands: Ranks [first, end), each within ``dim``.
        axes: ``spectrum(features)``.

    >>> points = np.array([[2.0, 0.1], [-2.0, -0.1], [2.0, -0.1], [-2.0, 0.1]])
    >>> classes = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> accuracy_by_rank(points, np.array([0, 1, 0, 1]), classes, [(0, 1), (0, 2)], spectrum(points)).tolist()
    [1.0, 1.0]
    """
    matrix, vectors = as_matrix(features, "features"), as_matrix(classes, "class vectors").astype(np.float64)
    targets = as_labels(labels, "labels", len(matrix), len(vectors))
    _check_bands(bands, matrix.shape[1])
    shared, turned = axes.mean @ vectors.T, vectors @ axes.basis
    right = np.zeros(len(bands))
    for rows in blocks(len(matrix), max(matrix.shape[1], len(vectors))):
        coordinates = axes.coordinates(matrix[rows])
        for number, (low, high) in enumerate(bands):
            answers = (shared + coordinates[:, low:high] @ turned[:, low:high].T).argmax(axis=1)
            right[number] += (answers == targets[rows]).sum()
    return np.asarray(right / len(matrix))


def radial_energy(patches: Array, grid: tuple[int, int]) -> Float64:
    """Return how the energy of each image's patch features is spread over spatial frequency, ``(n, rings)``, 0 or more.

    The 2D Fourier transform over the grid of every channel; ring r holds the frequencies whose distance from 0, in cycles per image,
    rounds to r; ring 0 is the mean over the patches. Scaled by 1 / patches^2, so that the rings of an image sum to the mean
    square of its features (Parseval). Images are independent: batches give the same rows.

    Args:
        patches: ``(n, patches, dim)``, row by row of the grid, without the class token.
        grid: (rows, columns).

    Raises:
        DataError: It is empty, not finite, or not as many patches as the grid has.

    >>> board = np.array([[1.0, -1.0], [-1.0, 1.0]]).reshape(1, 4, 1)
    >>> radial_energy(board + 3, (2, 2)).round(6).tolist()
    [[9.0, 1.0]]
    """
    features = np.asarray(patches)
    rows, columns = grid
    if features.ndim != 3 or features.shape[1] != rows * columns or 0 in features.shape:
        raise DataError("patch features have the wrong shape", found=features.shape, expected=f"(n, {rows} x {columns} patches, dim)")
    ring = _rings(rows, columns)
    energy = np.empty((len(features), ring.max() + 1))
    for images in blocks(len(features), features.shape[1] * features.shape[2]):
        block = features[images].astype(np.float64).reshape(-1, rows, columns, features.shape[2])
        if not np.isfinite(block).all():
            raise DataError("patch features hold NaN or infinity", found=f"within images {images.start} to {images.stop - 1}")
        power = (np.abs(np.fft.fft2(block, axes=(1, 2))) ** 2).mean(axis=3).reshape(len(block), -1) / (rows * columns) ** 2
        energy[images] = [np.bincount(ring, own) for own in power]
    return energy


def _rings(rows: int, columns: int) -> Int64:
    """Return the ring of each frequency of a grid, flattened, in the order of ``np.fft.fft2``."""
    across, down = np.fft.fftfreq(columns) * columns, np.fft.fftfreq(rows) * rows
    rings: Int64 = np.rint(np.hypot(down[:, None], across[None, :])).astype(np.int64).ravel()
    return rings


def _sum_of_products(matrix: Array, mean: Float64) -> Float64:
    total = np.zeros((matrix.shape[1], matrix.shape[1]))
    for rows in blocks(*matrix.shape):
        centred = matrix[rows] - mean
        total += centred.T @ centred
    return total


def _noise(before: Array, after: Array, basis: Float64) -> Float64:
    """Return the energy of ``after - before`` along each column of ``basis``, ``(dim,)``."""
    total = np.zeros(basis.shape[1])
    for rows in blocks(*before.shape):
        difference = after[rows].astype(np.float64) - before[rows]
        total += ((difference @ basis) ** 2).sum(axis=0)
    return total


def _ratio(signal: float, noise: float) -> float:
    return float(signal / noise) if noise > 0 else np.inf


def _check_bands(bands: Sequence[Band], rank: int) -> None:
    for low, high in bands:
        if not 0 <= low < high <= rank:
            raise DataError("a band of ranks is wrong", found=f"[{low}, {high})", expected=f"ranks within 0 to {rank}")
