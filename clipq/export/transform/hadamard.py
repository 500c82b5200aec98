"""Orthogonal matrices that spread every channel over all others and leave the mean of the channels alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
TRIES = 16


@dataclass(frozen=True, slots=True)
class Rotation:
    """One orthogonal matrix.

    Attributes:
        matrix: float64 ``(width, width)``.
        construction: How it was made, in words.
        seed: Of the try that was kept.
        largest: Its largest absolute entry times the root of its width: 1 spreads a lone channel over all others evenly.
    """

    matrix: Float64
    construction: str
    seed: int
    largest: float

    def to_json(self) -> dict[str, object]:
        """Return what an engine says of it."""
        return {
            "width": len(self.matrix),
            "construction": self.construction,
            "seed": self.seed,
            "largest_entry_times_root_of_width": round(self.largest, 4),
        }


def hadamard(order: int) -> Float64 | None:
    """Return a Hadamard matrix, entries 1 and -1, with ``H H^T = order I`` and first row and column of ones; None where we know none.

    Sylvester's doubling of one of Paley's matrices (R. Paley, 1933): of order ``q + 1`` for a prime q = 3 mod 4, and ``2 (q + 1)``
    for a prime q = 1 mod 4. That reaches the widths of CLIP: 768 = 64 * 12, 640 = 32 * 20, 896 = 32 * 28, 1152 = 32 * 36.

    >>> hadamard(2)
    array([[ 1.,  1.],
           [ 1., -1.]])
    >>> hadamard(6) is None
    True
    """
    odd, doublings = order, 0
    while odd > 1 and odd % 2 == 0:
        odd, doublings = odd // 2, doublings + 1
    for left in range(doublings, -1, -1):
        core = _paley(order >> left)
        if core is not None:
            for _ in range(left):
                core = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), core)
            core = core * core[0]
            return np.asarray(core * core[:, :1], np.float64)
    return None


def _paley(order: int) -> Float64 | None:
    if order in {1, 2}:
        return np.array([[1.0, 1.0], [1.0, -1.0]])[:order, :order]
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        return np.eye(order) + _conference(order - 1, sign=-1)
    half = order // 2
    if order % 2 == 0 and _is_prime(half - 1) and (half - 1) % 4 == 1:
        core, unit = _conference(half - 1, sign=1), np.eye(half)
        return np.block([[core + unit, core - unit], [core - unit, -core - unit]])
    return None


def _conference(prime: int, sign: int) -> Float64:
    """Return Paley's conference matrix of order ``prime + 1``: zero diagonal, ``C C^T = prime I``, ``C^T = sign C``."""
    residues = np.full(prime, -1.0)
    residues[np.arange(1, prime) ** 2 % prime] = 1.0
    residues[0] = 0.0
    size = np.arange(prime)
    matrix = np.zeros((prime + 1, prime + 1))
    matrix[0, 1:], matrix[1:, 0] = 1.0, sign
    matrix[1:, 1:] = residues[(size[:, None] - size[None, :]) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def mean_keeping_rotation(width: int, tries: int = TRIES) -> Rotation:
    """Return an orthogonal matrix Q, float64 ``(width, width)``, with ``Q 1 = 1``: it spreads channels and keeps their mean.

    ``Q = H^T diag(s) H / width`` for a Hadamard matrix H whose first row is ones, and random signs s with ``s[0] = 1``: Q maps the
    ones vector to ``H^T s[0] width e_0 / width``, the ones again. The flattest of some tries is kept. Where no Hadamard matrix of
    the width is known, Q is a random orthogonal matrix on the complement of the ones vector.

    Args:
        width: Channels.
        tries: How many seeds are tried, from 0 on.
    """
    basis = hadamard(width)
    make = _signed if basis is not None else _on_complement
    best = min((_flatness(make(width, basis, seed)), seed) for seed in range(tries))
    words = f"Hadamard matrix of order {width} with random signs" if basis is not None else "random orthogonal beside the mean"
    return Rotation(make(width, basis, best[1]), words, best[1], best[0])


def _flatness(matrix: Float64) -> float:
    return float(np.abs(matrix).max() * len(matrix) ** 0.5)


def _signed(width: int, basis: Float64 | None, seed: int) -> Float64:
    assert basis is not None
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], width)
    signs[0] = 1.0
    return np.asarray(basis.T @ (signs[:, None] * basis) / width, np.float64)


def _on_complement(width: int, basis: Float64 | None, seed: int) -> Float64:  # noqa: ARG001 - one signature for both
    """Return ``U diag(1, R) U^T`` for a basis U that begins with the ones vector and a random orthogonal R."""
    generator = np.random.default_rng(seed)
    start = generator.standard_normal((width, width))
    start[:, 0] = 1.0
    unit, _ = np.linalg.qr(start)
    middle = np.eye(width)
    middle[1:, 1:] = _random_orthogonal(width - 1, generator)
    return np.asarray(unit @ middle @ unit.T, np.float64)


def head_rotation(width: int) -> Float64:
    """Return an orthogonal matrix, float64 ``(width, width)``, for the channels of one head, which have no mean to keep.

    A normalised Hadamard matrix, or a random orthogonal one where none is known.
    """
    basis = hadamard(width)
    return basis / width**0.5 if basis is not None else _random_orthogonal(width, np.random.default_rng(0))


def _random_orthogonal(width: int, generator: np.random.Generator) -> Float64:
    unit, upper = np.linalg.qr(generator.standard_normal((width, width)))
    return np.asarray(unit * np.sign(np.diag(upper)), np.float64)
