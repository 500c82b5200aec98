"""The checkpoint in PyTorch on the GPU, FP32 without TF32 or BF16 compiled: the yardstick beside the engines of a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clipq.artifact import Bundle
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Engine, Float32, Tower, TowerSpec
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.errors import MissingRuntimeError


class TorchCudaEngine(Engine):
    """The image tower as users of PyTorch would run it on a GPU.

    Attributes:
        compiled: BF16 weights and activations, through ``torch.compile``, once per batch size; else eager FP32 with TF32 off.
    """

    def __init__(self, bundle: Bundle, engine_id: str, cache: Path) -> None:
        size = Preprocess.from_file(bundle.file("preprocess.json")).size
        super().__init__(engine_id, {"image": TowerSpec("float32", (3, *size), bundle.manifest.model.embed_dim)})
        self.compiled = engine_id.endswith("-compiled")
        self._model_id = bundle.manifest.model.id
        self._cache = cache
        self._forward: Any = None
        self._resident: tuple[npt.NDArray[Any] | None, Any] = (None, None)

    def _open(self) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self._cache))
        import torch

        if not torch.cuda.is_available():
            raise MissingRuntimeError("PyTorch sees no CUDA device", found=f"torch {torch.__version__}")
        visual = load_checkpoint(self._model_id).model.visual.cuda()
        if self.compiled:
            torch._dynamo.config.recompile_limit = 64  # noqa: SLF001 - one graph per batch size, none falls back to eager
            visual = torch.compile(visual.to(torch.bfloat16), dynamic=False)
        self._forward = visual
        self.provider = "cuda"

    def _close(self) -> None:
        import torch

        self._forward, self._resident = None, (None, None)
        torch.cuda.empty_cache()

    def _call(self, pixels: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self._forward(pixels.to(torch.bfloat16) if self.compiled else pixels).float()

    def _run(self, tower: Tower, batch: npt.NDArray[Any]) -> Float32:
        import torch

        del tower
        embeddings: Float32 = self._call(torch.from_numpy(batch).cuda()).cpu().numpy()
        return embeddings

    def device_seconds(self, tower: Tower, batch: npt.NDArray[Any], calls: int) -> list[float]:
        """Return the seconds of each call between events on PyTorch's stream, the batch being on the device already.

        Eager PyTorch launches its kernels one by one: where the processor is slower than the GPU, the gaps count.
        """
        import torch

        del tower
        if self._resident[0] is not batch:
            self._resident = (batch, torch.from_numpy(batch).cuda())
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        seconds = []
        for _ in range(calls):
            start.record()
            self._call(self._resident[1])
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
        return seconds
