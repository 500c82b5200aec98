"""The FP32 PyTorch engine: every other engine is compared with this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
from typing_extensions import Self

from clipq.artifact import Bundle, ModelEntry
from clipq.engines.base import Engine, Float32, Tower, TowerSpec
from clipq.engines.torch.checkpoint import Checkpoint, load_checkpoint
from clipq.engines.towers import tower_specs
from clipq.errors import EngineError, RefusedError


class TorchEngine(Engine):
    """Runs the checkpoint itself in FP32 on the CPU; the bundle names the model, and its tensors must have the manifest's hash."""

    def __init__(self, engine_id: str, model: ModelEntry, towers: Mapping[Tower, TowerSpec], threads: int | None) -> None:
        super().__init__(engine_id, towers)
        self._entry = model
        self._threads = threads
        self._threads_before = 0
        self._checkpoint: Checkpoint | None = None
        self._patch_tower: Any = None

    @classmethod
    def from_bundle(cls, bundle: Bundle, engine_id: str, threads: int | None) -> Self:
        """Return the engine for a bundle; nothing is loaded before it is entered.

        Args:
            bundle: The bundle.
            engine_id: ``torch-fp32``.
            threads: CPU threads, or None for PyTorch's default.

        Raises:
            UsageError: The bundle has no such engine.
            RefusedError: ``preprocess.json`` is not the file the manifest names.
        """
        bundle.engine(engine_id)
        return cls(engine_id, bundle.manifest.model, tower_specs(bundle, patches=True), threads)

    def transform(self) -> Callable[[Any], Float32]:
        """Return open_clip's own preprocessing of the opened model: decoded PIL image to pixels, float32 ``(3, h, w)``."""
        return self._loaded().transform()

    def _open(self) -> None:
        checkpoint = load_checkpoint(self._entry.id)
        if checkpoint.state_sha256 != self._entry.state_sha256:
            raise RefusedError(
                f"{self._entry.id} is not the model this bundle was made from",
                found=f"tensors with sha256 {checkpoint.state_sha256[:16]}…",
                expected=f"{self._entry.state_sha256[:16]}…",
                fix="Bring the checkpoint back, or export the bundle again.",
            )
        import torch

        self._threads_before = torch.get_num_threads()
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._checkpoint = checkpoint
        if self.patches:
            from clipq.engines.torch.patches import PatchTower

            self._patch_tower = PatchTower(checkpoint.model, checkpoint.model_id)
        self.provider = "cpu"

    def _close(self) -> None:
        import torch

        self._checkpoint = self._patch_tower = None
        torch.set_num_threads(self._threads_before)

    def _run(self, tower: Tower, batch: npt.NDArray[Any]) -> Float32:
        return self._loaded().embed(tower, batch)

    def _loaded(self) -> Checkpoint:
        if self._checkpoint is None:
            raise EngineError(f"engine {self.id} is not open", fix="Use it in a with block.")
        return self._checkpoint

    def _run_patches(self, pixels: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        if self._patch_tower is None:
            raise EngineError(f"engine {self.id} is not open", fix="Use it in a with block.")
        both: tuple[Float32, Float32] = self._patch_tower.compute(pixels)
        return both
