"""The toy bundle with an engine of plans that a real builder built: TensorRT-RTX's in a second and without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_bundle import make_toy_bundle, rewrite_manifest

from clipq.artifact import Bundle, EngineEntry
from clipq.engines.tensorrt.adapter import load_api
from clipq.engines.tensorrt.build import BuildOptions, build_plan
from clipq.engines.tensorrt.device import DeviceFacts
from clipq.errors import MissingRuntimeError
from clipq.files import write_json

ENGINE = "trtrtx-fp32"
ENGINES = {"tensorrt-rtx": ENGINE, "tensorrt": "trt-fp32"}
ADA = DeviceFacts("NVIDIA L4", "8.9", "580.82.07", "13.0", 24 << 30)
GRAPHS = {tower: f"towers/{tower}.fp32.onnx" for tower in ("image", "text")}


def planned(runtime: str = "tensorrt-rtx", **more: Any) -> EngineEntry:
    """Return the manifest entry of an engine whose plans are still to be built, or with ``towers``, are."""
    return EngineEntry(runtime, "cuda", "fp32", graphs=GRAPHS, **more)


def make_planned_bundle(folder: Path, runtime: str = "tensorrt-rtx") -> Bundle:
    """Write the toy bundle with the engine of a runtime, for batches of 2 to 8; skips the test where its builder is not installed."""
    try:
        load_api(runtime)
    except MissingRuntimeError as error:
        pytest.skip(str(error))
    bundle = make_toy_bundle(folder)
    engine_id = ENGINES[runtime]
    home = folder / "engines" / engine_id
    home.mkdir(parents=True)
    plans = {
        tower: build_plan(
            runtime,
            folder / graph,
            home / f"{tower}.plan",
            "fp32",
            BuildOptions(batch=(2, 4, 8)),
        )
        for tower, graph in GRAPHS.items()
    }
    write_json(home / "engine.json", {"engine": engine_id, "plans": plans, "work": {}})
    towers = {tower: f"engines/{engine_id}/{tower}.plan" for tower in GRAPHS}
    return rewrite_manifest(folder, {**bundle.manifest.engines, engine_id: planned(runtime, towers=towers)})
