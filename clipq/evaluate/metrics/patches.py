"""GL-MCM: the maximum concept matching of the whole image together with that of its patches; higher = more OOD, float64."""

from __future__ import annotations

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, Matrix, as_vector, blocks
from clipq.evaluate.metrics.ood import mcm

TEMPERATURE = 1.0  # of the cosines, in both parts: the paper's
LOCAL_WEIGHT = 1.0  # lambda


def local_max(patch_cosines: Array, temperature: float = TEMPERATURE) -> Float64:
    """Return the highest softmax over the classes that any patch of an image has, in [1/classes, 1]: high where a patch shows a class.

    Args:
        patch_cosines: ``(n, patches, classes)``, of patch tokens with class embeddings; no ``logit_scale``.
        temperature: Divides the cosines before the softmax.

    Raises:
        DataError: It is empty, not finite, or not three-dimensional.

    >>> local_max(np.array([[[0.0, 0.0], [0.0, np.log(3.0)]]])).round(6).tolist()
    [0.75]
    """
    cosines = np.asarray(patch_cosines)
    if cosines.ndim != 3 or 0 in cosines.shape:
        raise DataError("patch cosines have the wrong shape", found=cosines.shape, expected="(n, patches, classes), none of them 0")
    highest = np.empty(len(cosines))
    for images in blocks(len(cosines), cosines.shape[1] * cosines.shape[2]):
        block = cosines[images].astype(np.float64) / temperature
        if not np.isfinite(block).all():
            raise DataError("patch cosines hold NaN or infinity", found=f"within images {images.start} to {images.stop - 1}")
        others = np.exp(block - block.max(axis=2, keepdims=True)).sum(axis=2)  # the largest term is 1
        highest[images] = 1 / others.min(axis=1)
    return highest


def gl_mcm(cosines: Matrix, local: Array, temperature: float = TEMPERATURE, local_weight: float = LOCAL_WEIGHT) -> Float64:
    """Return minus the sum of the maximum softmax of the image and ``local_weight`` times that of its patches; higher = more OOD.

    Miyai et al. 2023, arXiv 2304.04521, equation 5; ``get_ood_scores_clip`` of their repository, which takes both weights as 1. The local
    part comes reduced, as ``local_max`` gives it: patch tokens of all images are too many to be kept.

    Args:
        cosines: Of the images with the classes, ``(n, classes)``.
        local: ``(n,)``, in (0, 1].
        temperature: That of ``local`` too.
        local_weight: Lambda; 0 leaves MCM.

    Raises:
        DataError: The numbers of images differ, a value is not finite, or ``local`` leaves (0, 1].

    >>> gl_mcm(np.array([[0.0, np.log(3.0)]]), np.array([0.5])).round(6).tolist()
    [-1.25]
    """
    whole, part = mcm(cosines, temperature), as_vector(local, "local scores")
    if len(whole) != len(part):
        raise DataError("images and local scores differ in number", found=f"{len(whole)} and {len(part)}")
    if part.min() <= 0 or part.max() > 1 + 1e-6:  # they may be stored as float32
        raise DataError(
            "local scores leave (0, 1]", found=f"{part.min():.6g} to {part.max():.6g}", expected="the highest softmax of any patch"
        )
    return np.asarray(whole - local_weight * part)
