"""Zero-shot classification as in CLIP: class embeddings from prompt templates, then cosines and logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipq.artifact import ModelEntry
from clipq.engines.base import Float32
from clipq.errors import DataError, EngineError


def prompts(classnames: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return every template filled with every class name, all templates of the first class first.

    >>> prompts(["cat", "dog"], ["a {c}.", "no {c}."])
    ['a cat.', 'no cat.', 'a dog.', 'no dog.']

    Raises:
        DataError: There is no class, no template, or a template without ``{c}``.
    """
    if not classnames or not templates:
        raise DataError("zero-shot needs class names and templates", found=f"{len(classnames)} classes, {len(templates)} templates")
    for template in templates:
        if "{c}" not in template:
            raise DataError("a prompt template has no place for the class name", found=repr(template), expected="{c} in it")
    return [template.replace("{c}", name) for name in classnames for template in templates]


def l2_normalised(embeddings: Float32, what: str, *, start: int = 0) -> Float32:
    """Return embeddings ``(n, dim)`` divided by their FP32 L2 norm; ``start`` is the row of the first one, for an error.

    Raises:
        EngineError: An embedding is zero or its norm is not finite; ``what`` names them in the message.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~((norms > 0) & np.isfinite(norms)))
    if len(bad):
        raise EngineError(
            f"embeddings without direction: {what}", found=f"norm {norms[bad[0], 0]} at row {start + bad[0]}, {len(bad)} such rows"
        )
    unit: Float32 = (embeddings / norms).astype(np.float32, copy=False)
    return unit


def classifier(text_embeddings: Float32, templates: int, what: str) -> Float32:
    """Return one unit vector per class, float32 ``(classes, dim)``.

    Each prompt's embedding is normalised, the templates of a class are averaged, the mean is normalised again
    (Radford et al. 2021, arXiv 2103.00020, section 3.1.4; OpenAI's notebook ``Prompt_Engineering_for_ImageNet.ipynb``).

    Args:
        text_embeddings: Raw, float32 ``(classes * templates, dim)``, in the order of ``prompts``.
        templates: Number of templates.
        what: Names the engine and data in an error.
    """
    unit = l2_normalised(text_embeddings, what)
    return l2_normalised(unit.reshape(-1, templates, unit.shape[1]).mean(axis=1, dtype=np.float32), what)


def cosines(image_embeddings: Float32, classes: Float32, what: str, *, start: int = 0) -> Float32:
    """Return the cosine of every image with every class, float32 ``(n, classes)`` in [-1, 1] up to rounding.

    Args:
        image_embeddings: Raw, float32 ``(n, dim)``.
        classes: Unit vectors, float32 ``(classes, dim)``.
        what: Names the engine and data in an error.
        start: Row of the first image, for an error.
    """
    cosine: Float32 = l2_normalised(image_embeddings, what, start=start) @ classes.T
    return cosine


def logits(cosine: Float32, model: ModelEntry) -> Float32:
    """Return ``logit_scale * cosine + logit_bias``, float32 ``(n, classes)``; models without a bias have none added."""
    logit: Float32 = cosine * np.float32(model.logit_scale) + np.float32(model.logit_bias or 0.0)
    return logit
