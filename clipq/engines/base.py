"""The engine protocol: towers in, FP32 embeddings out, everything checked before and after inference."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from clipq.engines.proof import TowerProof
from clipq.errors import EngineError

Tower = Literal["image", "text"]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TowerSpec:
    """What one tower takes and gives; the first dimension of both is the batch.

    Attributes:
        input_dtype: ``float32`` for pixels, ``int32`` for tokens.
        input_shape: Without the batch: ``(3, height, width)`` or ``(context length,)``.
        embed_dim: Length of one embedding.
        patches: Patch tokens of one image, a second output of the image tower; 0 where there is none.
    """

    input_dtype: str
    input_shape: tuple[int, ...]
    embed_dim: int
    patches: int = 0


class Engine(ABC):
    """A context manager that turns pixels and tokens into embeddings.

    Subclasses load in ``_open``, release in ``_close`` and compute in ``_run`` and, where they have patch tokens, ``_run_patches``; they
    never check, that is done here once for all. ``run`` and ``run_patches`` may be called from several threads at once.

    Attributes:
        id: ``<runtime>-<precision>[-<method>]``, e.g. ``ort-int8-static``.
        towers: What each tower takes and gives.
        provider: What really computes, asserted by ``_open``, e.g. ``CPUExecutionProvider``.
        shares_cores: Other threads of this process need the cores too; set before ``_open``, which then forbids busy-waiting.
        uses_graphs: Replay batches of one size as a CUDA graph, where a plan runs; set before ``_open``.
        batches: Smallest and largest batch that every tower takes; ``_open`` narrows it where plans were built for a range.
    """

    def __init__(self, engine_id: str, towers: Mapping[Tower, TowerSpec]) -> None:
        self.id = engine_id
        self.towers = dict(towers)
        self.provider = ""
        self.shares_cores = False
        self.uses_graphs = False
        self.batches = (1, sys.maxsize)

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def run(self, tower: Tower, batch: npt.NDArray[Any]) -> Float32:
        """Return the raw (not normalised) embeddings of a batch.

        Args:
            tower: ``image`` or ``text``.
            batch: Pixels, float32 ``(n, 3, height, width)``, or token ids, int32 ``(n, context length)``.

        Returns:
            Float32 ``(n, embed_dim)``, finite.

        Raises:
            EngineError: A name, dtype or shape is wrong, or the output is not finite.
        """
        spec = self._checked(tower, batch)
        return self._finite(self._run(tower, batch), (len(batch), spec.embed_dim), f"the {tower} tower")

    @property
    def patches(self) -> int:
        """How many patch tokens ``run_patches`` gives for an image; 0 where the engine has none."""
        return self.towers["image"].patches if "image" in self.towers else 0

    def run_patches(self, pixels: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """Return the raw embeddings of a batch, equal to those of ``run``, and its raw patch tokens (neither is normalised).

        Args:
            pixels: Float32 ``(n, 3, height, width)``.

        Returns:
            Float32 ``(n, embed_dim)`` and ``(n, patches, embed_dim)``, row by row of the grid; both finite.

        Raises:
            EngineError: The engine has no patch tokens, a dtype or shape is wrong, or an output is not finite.
        """
        spec = self._checked("image", pixels)
        if not spec.patches:
            raise EngineError(f"engine {self.id} has no patch tokens", fix="Export the bundle again with --patch-tokens.")
        embeddings, patches = self._run_patches(pixels)
        n = len(pixels)
        return (
            self._finite(embeddings, (n, spec.embed_dim), "the image tower"),
            self._finite(patches, (n, spec.patches, spec.embed_dim), "the patch tokens"),
        )

    def _checked(self, tower: Tower, batch: npt.NDArray[Any]) -> TowerSpec:
        spec = self.towers.get(tower)
        if spec is None:
            raise EngineError(f"engine {self.id} has no {tower} tower", found=sorted(self.towers))
        if batch.dtype != spec.input_dtype or batch.ndim != len(spec.input_shape) + 1 or batch.shape[1:] != spec.input_shape:
            raise EngineError(
                f"wrong input for the {tower} tower of {self.id}",
                found=f"{batch.dtype} {batch.shape}",
                expected=f"{spec.input_dtype} (n, {', '.join(map(str, spec.input_shape))})",
            )
        return spec

    def _finite(self, output: Float32, shape: tuple[int, ...], what: str) -> Float32:
        if output.shape != shape or output.dtype != np.float32:
            raise EngineError(f"wrong output of {what} of {self.id}", found=f"{output.dtype} {output.shape}", expected=f"float32 {shape}")
        if not np.isfinite(output).all():
            rows = np.flatnonzero(~np.isfinite(output.reshape(len(output), -1)).all(axis=1))
            raise EngineError(
                f"NaN or infinity in the output of {what} of {self.id}",
                found=f"{len(rows)} of {len(output)} rows, first at row {rows[0]}",
                fix="Export this engine again with another precision or calibration method.",
            )
        return output

    def prove(self, tower: Tower) -> TowerProof | None:
        """Return the layers that really run in an opened engine's tower, or None where the runtime cannot tell."""
        del tower
        return None

    @abstractmethod
    def _open(self) -> None:
        """Load the towers, assert the provider and set ``self.provider``."""

    @abstractmethod
    def _close(self) -> None:
        """Release what ``_open`` took."""

    @abstractmethod
    def _run(self, tower: Tower, batch: npt.NDArray[Any]) -> Float32:
        """Compute one checked batch."""

    def _run_patches(self, pixels: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """Compute one checked batch of an image tower whose spec has patch tokens."""
        raise NotImplementedError(f"{type(self).__name__} says that it has {self.patches} patch tokens of {pixels.shape}")
