"""Published zero-shot accuracies on ImageNet and its shifted relatives, and the line through them.

``published.csv`` is an extract of open_clip's ``docs/openclip_results.csv`` at commit 89fb801f (MIT): every model that has all six
columns, without rows that repeat another; no measurement of ours. Protocol there: 80 templates, ImageNet-R and -A over their 200 classes,
ImageNet over all 1,000, ObjectNet over its 113 names.
"""

from __future__ import annotations

import csv
import functools
from importlib.resources import files

import numpy as np

from clipq.evaluate.metrics.robustness import LogitLine, fit_logit_line

SOURCE = "open_clip docs/openclip_results.csv, commit 89fb801f"
KNOWN = "imagenet"


@functools.cache
def published_line(shifted: str) -> LogitLine:
    """Return the line for one of ``pairs.SHIFTED_IMAGENET`` against the whole of ImageNet."""
    text = (files("clipq.evaluate.robustness") / "published.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return fit_logit_line(np.array([float(row[KNOWN]) for row in rows]), np.array([float(row[shifted]) for row in rows]))
