"""The engines by id: each loaded only when it is opened."""

from __future__ import annotations

import importlib

from clipq.artifact import Bundle
from clipq.engines.base import Engine
from clipq.errors import unknown_name

# Each class has from_bundle(bundle, engine_id, threads) -> Engine.
ENGINES: dict[str, str] = {
    "torch-fp32": "clipq.engines.torch.run:TorchEngine",
    "ort-fp32": "clipq.engines.onnxruntime.run:OrtEngine",
    "ort-int8-dynamic": "clipq.engines.onnxruntime.run:OrtEngine",
    "ort-int8-static": "clipq.engines.onnxruntime.run:OrtEngine",
}


def open_engine(bundle: Bundle, engine_id: str, threads: int | None = None, *, shares_cores: bool = False) -> Engine:
    """Return an engine of a bundle, checked against the manifest but not yet loaded: use it in a ``with`` block.

    Args:
        bundle: Where the engine's files are.
        engine_id: ``<runtime>-<precision>[-<method>]``.
        threads: CPU threads of one inference; None leaves the choice to the runtime.
        shares_cores: Other threads of this process need the cores too, so the engine must not busy-wait.

    Raises:
        UsageError: The id is unknown to this tool or to the bundle.
        MissingRuntimeError: The runtime is not installed.
        RefusedError: A file is not what the manifest says.
    """
    if engine_id not in ENGINES:
        raise unknown_name("engine", engine_id, ENGINES)
    module, name = ENGINES[engine_id].split(":")
    engine: Engine = getattr(importlib.import_module(module), name).from_bundle(bundle, engine_id, threads)
    engine.shares_cores = shares_cores
    return engine
