"""Bundles on the GPU host: portable graphs by PyTorch's Python, plans by TensorRT's, and the layers the plans have."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipq.artifact import Bundle
from clipq.cli.main import main as clipq
from clipq.engines.table import ENGINES
from clipq.engines.tensorrt.build import BuildOptions
from clipq.errors import ClipqError
from clipq.evaluate.proof import prove
from clipq.export.rebuild import rebuild_bundle

BATCH = (1, 32, 128)  # smallest, usual, largest: kernels are chosen for 32


def export(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Make a bundle with graphs only; a finished one is checked instead."""
    command = ["export", arguments["model"], "-o", arguments["output"], "--engines", ",".join(arguments["engines"]), "--graphs-only"]
    command += ["--calib", arguments["calib"], "--calib-n", str(arguments["calib_n"]), "--mha", arguments["mha"], "--resume"]
    code = clipq(command)
    if code:
        sys.exit(code)  # the command has said why
    bundle = Bundle.open(Path(arguments["output"]))
    sizes = {name: entry.size_bytes for name, entry in bundle.manifest.files.items() if name.endswith((".onnx", ".data"))}
    return {"command": f"clipq {' '.join(command)}", "model": bundle.manifest.model.id, "graphs_bytes": sizes}


def build(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Build the plans of a bundle; an engine that cannot be built is left out with the reason.

    Returns:
        ``plans``: engine -> tower -> what the builder says of it, seconds and bytes among it; ``failed``: engine -> reason.
    """
    parent, folder = Bundle.open(Path(arguments["bundle"])), Path(arguments["output"])
    failed: dict[str, str] = {}
    start = time.perf_counter()
    try:
        _rebuild(parent, arguments["engines"], folder)
    except ClipqError as first:
        failed = {name: reason for name in arguments["engines"] if (reason := _attempt(parent, name, folder.with_name("attempt")))}
        able = [name for name in arguments["engines"] if name not in failed]
        if not able or not failed:
            raise first from None
        shutil.rmtree(folder, ignore_errors=True)
        _rebuild(parent, able, folder)
    bundle = Bundle.open(folder)
    plans = {name: _engine_json(bundle, name)["plans"] for name in bundle.manifest.engines if ENGINES[name].planned}
    return {"seconds_together": time.perf_counter() - start, "batch": BATCH, "plans": plans, "failed": failed}


def layers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return, per engine, the layers that its runtime lists, summed up and one by one."""
    bundle = Bundle.open(Path(arguments["bundle"]))
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in arguments["engines"]:
        if name not in bundle.manifest.engines:
            continue
        try:
            found.update(prove(bundle, [name], allow_fallback=True))
        except ClipqError as error:
            failed[name] = str(error)
    return {"layers": found, "failed": failed}


def _rebuild(parent: Bundle, engines: Sequence[str], folder: Path) -> None:
    rebuild_bundle(parent, tuple(engines), folder, BuildOptions(batch=BATCH), resume=True)


def _attempt(parent: Bundle, engine: str, folder: Path) -> str:
    """Build one engine and throw it away; return why it cannot be built, or nothing."""
    try:
        _rebuild(parent, [engine], folder)
    except ClipqError as error:
        return str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def _engine_json(bundle: Bundle, engine_id: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(bundle.file(f"engines/{engine_id}/engine.json").read_text())
    return facts
