"""Golden tensors through an engine: how far it is from FP32 PyTorch here, and how far it may be by what the export measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.artifact import Bundle
from clipq.engines.base import Engine, Float32, Tower
from clipq.engines.closeness import BATCH_SIZES, FIGURES, beyond, compare_outputs, golden_blocks, limits_elsewhere, row_cosines
from clipq.engines.golden import Golden
from clipq.errors import RefusedError
from clipq.evaluate.zeroshot import cosines, l2_normalised

MEASURED_ROWS = sum(BATCH_SIZES)
TOWERS: tuple[Tower, ...] = ("image", "text")


def check_towers(bundle: Bundle, engine: Engine, golden: Golden) -> dict[str, Any]:
    """Return what an opened engine makes of the golden tensors.

    Figures are of the rows, in the batches, that the export measured; a tower is within its limits as ``limits_elsewhere`` says. The
    agreement is of all rows: the share of the golden images whose nearest golden text, by both towers of the engine, is PyTorch's.

    Returns:
        ``towers``: TOWER (``patches`` for patch tokens) -> ``max_abs_error``, ``max_abs_output``, ``cosine_mean``, ``min_cosine``,
        ``min_centred_cosine``, ``at_export`` and ``limits`` (None where the export left no figures), ``beyond`` (names of figures beyond
        their limit); ``top1_agreement`` in [0, 1]; ``rows``, the golden images.

    Raises:
        EngineError: The engine failed, or gave NaN.
        RefusedError: ``engine.json`` cannot be read.
    """
    outputs = {tower: golden_outputs(engine, tower, golden.inputs(tower)) for tower in TOWERS}
    exported = {tower: exported_figures(bundle, engine.id, tower, golden) for tower in TOWERS}
    towers = {str(tower): _judged(outputs[tower], golden.outputs(tower), exported[tower]) for tower in TOWERS}
    if golden.patches is not None and engine.patches:
        blocks = [engine.run_patches(golden.pixels[rows])[1] for rows in _blocks(engine, len(golden.pixels))]
        own = (exported["image"] or {}).get("patches")
        towers["patches"] = _judged(_flat(np.concatenate(blocks)[:MEASURED_ROWS]), _flat(golden.patches[:MEASURED_ROWS]), own, rows=None)
    expected = _nearest(golden.image_embedding, golden.text_embedding, "golden tensors")
    agreement = float((_nearest(outputs["image"], outputs["text"], engine.id) == expected).mean())
    return {"towers": towers, "top1_agreement": agreement, "rows": len(expected)}


def golden_outputs(engine: Engine, tower: Tower, inputs: npt.NDArray[Any]) -> Float32:
    """Return an engine's raw embeddings of golden inputs, float32 ``(n, embed dim)``, in the batches of the export.

    A plan that takes no batch so small gets the first input again and again beside those of the batch.
    """
    smallest = engine.batches[0]
    found = []
    for rows in _blocks(engine, len(inputs)):
        batch = inputs[rows]
        filled = np.concatenate([batch, np.repeat(batch[:1], max(smallest - len(batch), 0), axis=0)])
        found.append(engine.run(tower, filled)[: len(batch)])
    return np.concatenate(found)


def exported_figures(bundle: Bundle, engine_id: str, tower: Tower, golden: Golden) -> Mapping[str, Any] | None:
    """Return what the export measured of the graph behind a tower: PyTorch against itself for PyTorch, None where it left nothing.

    Raises:
        RefusedError: ``engine.json`` is not what the manifest says, or cannot be read.
    """
    entry = bundle.engine(engine_id)
    if entry.runtime == "torch":
        return _of_itself(golden, tower)
    graph = entry.graphs.get(tower) or entry.towers.get(tower)
    if graph == f"towers/{tower}.fp32.onnx":
        return _figures(bundle.manifest.recipe.get("parity", {}).get(tower), f"the manifest of {bundle.folder}")
    name = f"engines/{engine_id}/engine.json"
    if name not in bundle.manifest.files:
        return None
    path = bundle.file(name)
    try:
        facts = json.loads(path.read_text()).get("graphs", {}).get(graph, {})
        return _figures(facts.get("parity", facts.get("parity_rounded")), path)
    except (ValueError, AttributeError) as error:
        raise RefusedError(f"{path} does not describe an engine", found=error, fix="Export the bundle again.") from error


def _of_itself(golden: Golden, tower: Tower) -> dict[str, Any]:
    outputs, patches = golden.outputs(tower)[:MEASURED_ROWS], golden.patch_tokens(tower)
    more = {} if patches is None else {"patches": compare_outputs(*[_flat(patches[:MEASURED_ROWS])] * 2)}
    return {**compare_outputs(outputs, outputs), **more}


def _figures(said: Any, where: object) -> Mapping[str, Any] | None:
    if said is None:
        return None
    if not isinstance(said, dict) or not all(isinstance(said.get(name), float) and np.isfinite(said[name]) for name in FIGURES):
        raise RefusedError(f"{where} does not tell how far a graph is from PyTorch", found=said, fix="Export the bundle again.")
    return said


def _judged(found: Float32, expected: Float32, exported: Mapping[str, Any] | None, rows: int | None = MEASURED_ROWS) -> dict[str, Any]:
    found, expected = found[:rows], expected[:rows]
    figures = {**compare_outputs(found, expected), "cosine_mean": float(row_cosines(found, expected).mean())}
    at_export = {name: exported[name] for name in FIGURES} if exported else None
    limits = limits_elsewhere(at_export) if at_export else None
    return {**figures, "at_export": at_export, "limits": limits, "beyond": beyond(figures, limits) if limits else []}


def _blocks(engine: Engine, rows: int) -> list[slice]:
    """Return the batches of the export, cut where the engine takes no more at once."""
    largest = engine.batches[1]
    return [
        slice(start, min(start + largest, block.stop)) for block in golden_blocks(rows) for start in range(block.start, block.stop, largest)
    ]


def _flat(patches: Float32) -> Float32:
    return patches.reshape(-1, patches.shape[-1])


def _nearest(images: Float32, texts: Float32, what: str) -> npt.NDArray[np.int64]:
    nearest: npt.NDArray[np.int64] = cosines(images, l2_normalised(texts, what), what).argmax(axis=1)
    return nearest
