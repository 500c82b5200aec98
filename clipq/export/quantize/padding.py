"""Which tokens of a text count: those that its embedding depends on. Most of a short text is padding behind its end, which nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.export.quantize.graph import open_on_cpu

Mask = npt.NDArray[np.bool_]
_SAME = 1e-5  # of the largest value: other numbers behind the end may change the order of sums


class Padding:
    """Tells the tokens of texts that count, batch by batch.

    Nothing behind the end token counts where a token attends to those before it alone and the embedding is that of the end token. It is
    tried, not looked up: on the first texts that end early, other tokens are put behind their ends, and the embeddings must stay as
    they are.

    Args:
        embed: Inputs of a tower to its embeddings ``(n, d)``; called once at most.
    """

    def __init__(self, embed: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]) -> None:
        self._embed = embed
        self._unread: bool | None = None

    def read(self, inputs: npt.NDArray[Any]) -> Mask | None:
        """Return which tokens of a batch count, bool ``(texts, tokens)``; None for all, of images too.

        Args:
            inputs: Tokens ``(texts, tokens)``, the end token being the largest number, or pixels.
        """
        if inputs.ndim != 2 or inputs.dtype.kind != "i":
            return None
        read = up_to_end(inputs)
        if read.all():
            return None
        if self._unread is None:
            other = np.where(read, inputs, np.where(inputs == 1, 2, 1)).astype(inputs.dtype)
            as_is, changed = np.split(self._embed(np.concatenate([inputs, other])), 2)
            self._unread = bool(np.abs(as_is - changed).max() <= _SAME * np.abs(as_is).max())
        return read if self._unread else None


def padding_of(source: Path) -> Padding:
    """Return what tells the tokens that count to a graph, the first output of which is the embeddings."""

    def embed(inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        session = open_on_cpu(source)
        embeddings: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: inputs})[0]
        return embeddings

    return Padding(embed)


def up_to_end(tokens: npt.NDArray[Any]) -> Mask:
    """Return which tokens ``(texts, tokens)`` stand before the end token, the largest number, or are it.

    >>> up_to_end(np.array([[49406, 320, 49407, 0], [49406, 49407, 0, 0]])).astype(int).tolist()
    [[1, 1, 1, 0], [1, 1, 0, 0]]
    """
    upto: Mask = np.arange(tokens.shape[1]) <= tokens.argmax(axis=1)[:, None]
    return upto


def counted(values: npt.NDArray[np.float32], read: Mask | None) -> npt.NDArray[np.float32]:
    """Return the values of an activation that belong to tokens that count, as rows of channels, or, where all count, as it is.

    Args:
        values: ``(texts, tokens, channels)``, or ``(texts, heads, tokens, channels)`` or ``(texts, heads, channels, tokens)`` of attention;
            of another shape they have no tokens, and all count.
        read: Which tokens count, ``(texts, tokens)``; None for all.
    """
    if read is None:
        return values
    if values.ndim == 4:  # probabilities are (tokens, tokens) and have no range to look for
        values = np.moveaxis(values, 2 if values.shape[2] == read.shape[1] else 3, 1)
    return values[read] if values.ndim > 2 and values.shape[:2] == read.shape else values
