"""Opens engines one by one, so that one that cannot run here is a line in the record and not the end of a part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipq.artifact import Bundle
from clipq.engines.base import Engine
from clipq.engines.table import open_engine
from clipq.errors import ClipqError
from clipq.progress import note

Opened = tuple[dict[str, Engine], dict[str, str]]


@contextlib.contextmanager
def open_each(groups: Sequence[tuple[Bundle, Sequence[str]]], *, cache: Path = Path(), sharing: int = 0) -> Iterator[Opened]:
    """Yield the engines that open and compute one image, and of the others the reason why not.

    Args:
        groups: Bundles with engine ids of theirs, or with ``torch-cuda-*``.
        cache: Where ``torch.compile`` keeps what it made.
        sharing: CPU threads of one inference where other threads decode beside it; 0 for an engine that has the cores to itself.
    """
    engines: dict[str, Engine] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for bundle, names in groups:
            for name in names:
                reason = _enter(stack, engines, bundle, name, cache, sharing)
                if reason:
                    failed[name] = reason
        yield engines, failed


@contextlib.contextmanager
def open_replayed(bundle: Bundle, name: str) -> Iterator[Any]:
    """Yield a TensorRT engine that replays each batch as a CUDA graph, or None where it cannot."""
    with contextlib.ExitStack() as stack:
        try:
            engine: Any = open_engine(bundle, name)
            engine.uses_graphs = True
            stack.enter_context(engine)
            engine.run("image", np.zeros((1, *engine.towers["image"].input_shape), np.float32))
        except ClipqError as error:
            note(f"{name} is not replayed as a CUDA graph: {error}")
            engine = None
        yield engine


def _enter(  # noqa: PLR0913, PLR0917 - what open_each was given
    stack: contextlib.ExitStack, engines: dict[str, Engine], bundle: Bundle, name: str, cache: Path, sharing: int
) -> str:
    """Open an engine, compute one image and keep it; return why not where it cannot."""
    try:
        engine = stack.enter_context(_engine(bundle, name, cache, sharing))
        engine.run("image", np.zeros((1, *engine.towers["image"].input_shape), np.float32))
    except (ClipqError, RuntimeError, ImportError) as error:  # RuntimeError: what PyTorch and its compiler raise
        return " ".join(str(error).split())[:400] or type(error).__name__
    engines[name] = engine
    return ""


def _engine(bundle: Bundle, name: str, cache: Path, sharing: int) -> Engine:
    if name.startswith("torch-cuda-"):
        from torch_cuda import TorchCudaEngine

        return TorchCudaEngine(bundle, name, cache)
    return open_engine(bundle, name, sharing or None, shares_cores=sharing > 0)
