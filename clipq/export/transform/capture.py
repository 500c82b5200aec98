"""What the linear layers of a tower read on the calibration inputs: every channel's extremes, and some whole rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipq.engines.base import Tower
from clipq.errors import DataError, ExportError
from clipq.export.attention import plain_attention
from clipq.export.quantize.padding import Padding
from clipq.export.transform.blocks import PARTS, Block, Part, tower_of

Key = tuple[str, Part]
_BUDGET = 256 << 20  # bytes of rows over all layers
_MOST_ROWS = 1024
_LEAST_ROWS = 256


@dataclass(slots=True)
class Seen:
    """What one linear layer read.

    Attributes:
        rows: A sample of its inputs, each token of each image equally likely, float32 ``(rows, channels)``; all layers of a tower have
            the same tokens.
        lowest: Smallest value of each channel over all inputs, float32 ``(channels,)``.
        highest: Largest value of each channel.
    """

    rows: Tensor
    lowest: Tensor
    highest: Tensor

    def largest(self, offset: Tensor) -> Tensor:
        """Return the largest absolute value of each channel over all inputs, minus an offset, float32 ``(channels,)``."""
        return torch.maximum((self.lowest - offset).abs(), (self.highest - offset).abs())


def _empty(size: int, width: int) -> Seen:
    endless = torch.full((width,), float("inf"))
    return Seen(torch.zeros(size, width), endless, -endless)


class _Sample:
    """Draws the tokens whose rows are kept, evenly from a stream of unknown length: those with the smallest random numbers."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._numbers = torch.full((size,), float("inf"))
        self._generator = torch.Generator().manual_seed(0)

    def choose(self, count: int) -> tuple[Tensor, Tensor]:
        """Return, for the next ``count`` tokens, the places that change and the tokens that go there."""
        drawn = torch.rand(count, generator=self._generator)
        both = torch.cat([self._numbers, drawn])
        kept = torch.zeros(len(both), dtype=torch.bool)
        kept[both.topk(self.size, largest=False).indices] = True
        taken = kept[self.size :].nonzero().flatten()
        places = (~kept[: self.size]).nonzero().flatten()[: len(taken)]
        self._numbers[places] = drawn[taken]
        return places, taken

    @property
    def filled(self) -> Tensor:
        """The places that hold a row."""
        return self._numbers.isfinite().nonzero().flatten()


class _Watch:
    """Hooks on all linear layers of some blocks."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = tuple(blocks)
        widths = {(block.name, part): int(block.weight(part).shape[1]) for block in self._blocks for part in PARTS}
        size = max(_LEAST_ROWS, min(_MOST_ROWS, _BUDGET // (4 * sum(widths.values()))))
        self._sample, self._first = _Sample(size), 0
        self._plan: tuple[Tensor, ...] = ()
        self._read: Tensor | None = None
        self.seen = {key: _empty(size, width) for key, width in widths.items()}

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch while the block runs; attention must be in its plain form, or nobody calls ``out_proj``."""
        handles = []
        for block in self._blocks:
            attention, mlp = block.module.attn, block.module.mlp
            layers = (attention.project, attention.original.out_proj, mlp.c_fc, mlp.c_proj)
            handles += [layer.register_forward_pre_hook(self._hook((block.name, part))) for part, layer in zip(PARTS, layers, strict=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def start_batch(self, first: int, read: Tensor | None) -> None:
        """Draw new tokens at the first layer that runs.

        Args:
            first: Number of the batch's first input.
            read: Which of the batch's tokens count, bool ``(inputs * tokens,)``; None for all.
        """
        self._plan, self._first, self._read = (), first, read

    def finished(self) -> Mapping[Key, Seen]:
        """Return what was seen, without the places that stayed empty."""
        filled = self._sample.filled
        for seen in self.seen.values():
            seen.rows = seen.rows[filled]
        return self.seen

    def _hook(self, key: Key) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def keep(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            rows = rows if self._read is None else rows[self._read]
            seen = self.seen[key]
            seen.lowest, seen.highest = torch.minimum(seen.lowest, rows.amin(dim=0)), torch.maximum(seen.highest, rows.amax(dim=0))
            if not (seen.lowest.isfinite().all() and seen.highest.isfinite().all()):
                raise ExportError(
                    f"NaN or infinity in front of {key[0]}:{key[1]}",
                    found=f"calibration inputs {self._first} to {self._first + len(inputs[0]) - 1}",
                    fix="Check the checkpoint and the images.",
                )
            self._plan = self._plan or self._sample.choose(len(rows))
            places, taken = self._plan
            seen.rows[places] = rows[taken]

        return keep


def padding_of_model(model: Any, tower: Tower) -> Padding:
    """Return what tells the tokens that count to a tower of a model."""
    encode = model.encode_image if tower == "image" else model.encode_text

    def embed(inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        device = next(model.parameters()).device
        with torch.no_grad():
            embeddings: npt.NDArray[np.float32] = encode(torch.from_numpy(inputs).to(device), normalize=False).cpu().numpy()
        return embeddings

    return Padding(embed)


def rows_read(model: Any, padding: Padding, inputs: npt.NDArray[Any]) -> Tensor | None:
    """Return which rows that the layers of a tower read count, bool ``(inputs * tokens,)`` in the order of its blocks; None for all."""
    read = padding.read(inputs)
    if read is None:
        return None
    first = tower_of(model, "text").transformer.batch_first
    return torch.from_numpy(np.ascontiguousarray(read if first else read.T)).flatten()


def capture(model: Any, tower: Tower, blocks: Iterable[Block], batches: Iterable[npt.NDArray[Any]]) -> Mapping[Key, Seen]:
    """Run calibration inputs through a tower and return what each linear layer of its blocks read, by block and part.

    Memory does not grow with the number of inputs: at most 1,024 rows of each layer are kept, fewer where a tower is large. Of a text
    only the tokens count that its embedding depends on.

    Args:
        model: An open_clip model.
        tower: Which of its towers.
        blocks: Its blocks.
        batches: Pixels or tokens, read once.

    Raises:
        DataError: There are no inputs.
        ExportError: A layer reads NaN or infinity.
    """
    encode = model.encode_image if tower == "image" else model.encode_text
    count, watch = 0, _Watch(blocks)
    padding = padding_of_model(model, tower)
    with plain_attention(model), torch.no_grad(), torch.autocast("cpu", enabled=False):
        for batch in batches:
            watch.start_batch(count, rows_read(model, padding, batch))
            with watch.hooks():
                encode(torch.from_numpy(batch), normalize=False)
            count += len(batch)
    if not count:
        raise DataError("no calibration images", found=0, expected="at least 1", fix="Name a data set with --calib.")
    return watch.finished()
