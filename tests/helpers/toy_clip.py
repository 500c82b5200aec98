"""Small CLIPs with random tensors everywhere, norms and biases too, which a fresh model has as ones and zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from clipq.engines.torch.compat import import_open_clip

VISION = {"image_size": 24, "patch_size": 8, "width": 48, "head_width": 12, "layers": 2}
TEXT = {"context_length": 10, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2}


def random_clip(vision: dict | None = None, text: dict | None = None, *, quick_gelu: bool = False, seed: int = 0) -> Any:
    """Return an open_clip model in eval mode, without gradients, its configuration changed by what is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = import_open_clip().CustomTextCLIP if text and text.get("proj_bias") else import_open_clip().CLIP
        model = kind(24, {**VISION, **(vision or {})}, {**TEXT, **(text or {})}, quick_gelu=quick_gelu)
        model.eval().requires_grad_(requires_grad=False)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.4 * torch.randn(parameter.shape))
            elif parameter.ndim == 2:
                parameter.mul_(1.5)
    return model


def inputs_of(tower: str, count: int = 6, seed: int = 0) -> np.ndarray:
    """Return pixels or tokens for such a model; the end token is the largest."""
    rng = np.random.default_rng(seed)
    if tower == "image":
        return rng.standard_normal((count, 3, 24, 24)).astype(np.float32)
    tokens = rng.integers(1, 50, (count, 10)).astype(np.int32)
    tokens[np.arange(count), rng.integers(3, 10, count)] = 59
    return tokens


def embed(model: Any, tower: str, batch: np.ndarray) -> np.ndarray:
    """Return the raw embeddings of a tower."""
    encode = model.encode_image if tower == "image" else model.encode_text
    with torch.no_grad():
        return np.asarray(encode(torch.from_numpy(batch), normalize=False))


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference of two arrays over the largest value of the first."""
    return float(np.abs(a - b).max() / np.abs(a).max())
