"""From accuracies on two sets of images to what a shift or a spurious correlation costs, and to what quantization adds to that.

Every function takes accuracies in [0, 1], single ones or arrays of resampled ones alike. Where a quotient has nothing to divide by it
is NaN. Accuracies of 0 and 1 have no logit: those are taken as half an image away from the end, ``1 / (2 n)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64


def relative_loss(before: Array | float, after: Array | float) -> Float64:
    """Return ``(before - after) / before``: the share of the right answers that is lost; negative for a gain, at most 1.

    The relative change delta(D) of arXiv 2509.21173: before is full precision, after is quantized.

    >>> float(relative_loss(0.8, 0.6).round(12))
    0.25
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    lost = np.full(np.broadcast_shapes(first.shape, second.shape), np.nan)
    np.divide(first - second, first, out=lost, where=first > 0)
    return lost


def relative_spurious_gap(common: Array | float, counter: Array | float) -> Float64:
    """Return RSG, ``(common - counter) / common``: the share of the right answers that goes where the spurious cue is broken.

    arXiv 2509.21173 (D_N is the common group, D_C the counter group). Its rise by quantization is dRSG; the added vulnerability
    ``Vuln_add`` is the relative loss on the counter group less that on the common group.

    >>> float(relative_spurious_gap(0.9, 0.45))
    0.5
    """
    return relative_loss(common, counter)


def inside(accuracy: Array | float, n: int) -> Float64:
    """Return accuracies of ``n`` images kept half an image away from 0 and 1.

    >>> inside([0.0, 0.5, 1.0], 10).tolist()
    [0.05, 0.5, 0.95]
    """
    if n < 1:
        raise DataError("an accuracy of no images", found=n, expected="at least 1")
    return np.clip(np.asarray(accuracy, np.float64), 0.5 / n, 1 - 0.5 / n)


@dataclass(frozen=True, slots=True)
class Sides:
    """Accuracies of one engine on images of the known kind and on shifted ones, with how many there are of each."""

    known: Array | float
    shifted: Array | float
    n_known: int
    n_shifted: int


def effective_robustness(engine: Sides, baseline: Sides) -> Float64:
    """Return how much more accurate an engine is on shifted images than its accuracy on known ones foretells; 0 for the baseline.

    ``shifted - expit(logit(baseline.shifted) + logit(known) - logit(baseline.known))``: the line on which both accuracies move along
    with the baseline's, in logits and with slope 1. This is our own choice of a line where one model only is at hand; Taori et al. 2020
    (arXiv 2007.00644) fit theirs over many models, see ``fit_logit_line``.

    Args:
        engine: Of the engine.
        baseline: Of the baseline, on the same images.

    Returns:
        In (-1, 1): above 0 the engine lost less (or gained more) than it should have.

    >>> same = Sides(0.8, 0.5, 1000, 1000)
    >>> float(effective_robustness(same, same))
    0.0
    """
    own, other = inside(engine.shifted, engine.n_shifted), inside(baseline.shifted, baseline.n_shifted)
    moved = logit(inside(engine.known, engine.n_known)) - logit(inside(baseline.known, baseline.n_known))
    foretold = np.where(moved == 0, other, expit(logit(other) + moved))
    return np.asarray(own - foretold, np.float64)


@dataclass(frozen=True, slots=True)
class LogitLine:
    """``logit(shifted) = intercept + slope * logit(known)``, fitted over models.

    Attributes:
        slope: Logits of accuracy on shifted images per logit on known ones.
        intercept: On shifted images where half of the known ones are right.
        models: How many it was fitted over.
        spread: Standard deviation of the models' accuracies on shifted images about the line, in [0, 1].
    """

    slope: float
    intercept: float
    models: int
    spread: float

    def foretold(self, known: Array | float, n_known: int) -> Float64:
        """Return the accuracy on shifted images that goes with one on ``n_known`` known images, in (0, 1)."""
        return np.asarray(expit(self.intercept + self.slope * logit(inside(known, n_known))), np.float64)


def fit_logit_line(known: Array, shifted: Array) -> LogitLine:
    """Return the line of least squares through the logits of two accuracies over models (beta of Taori et al. 2020, section 2).

    Args:
        known: ``(models,)`` accuracies in (0, 1) on images of the known kind.
        shifted: ``(models,)`` of the same models on shifted ones.

    Raises:
        DataError: There are fewer than three models, or all have the same accuracy, or one is 0 or 1.

    >>> line = fit_logit_line(np.array([0.5, 0.6, 0.9]), np.array([0.5, 0.6, 0.9]))
    >>> round(line.slope, 12), round(line.intercept, 12) + 0.0
    (1.0, 0.0)
    """
    x, y = (logit(np.asarray(values, np.float64)) for values in (known, shifted))
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3 or not np.isfinite([x, y]).all() or np.ptp(x) == 0:
        raise DataError(
            "no line goes through these accuracies",
            found=f"{x.size} and {y.size} of models",
            expected="three or more pairs strictly between 0 and 1, not all alike",
        )
    slope = float(np.dot(x - x.mean(), y - y.mean()) / np.dot(x - x.mean(), x - x.mean()))
    intercept = float(y.mean() - slope * x.mean())
    errors = expit(y) - expit(intercept + slope * x)
    return LogitLine(slope, intercept, len(x), float(np.sqrt(np.mean(errors**2))))
