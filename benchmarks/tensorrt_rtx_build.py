"""Which of our graphs the real TensorRT-RTX builder takes, on a machine without a GPU: seconds, bytes, and every refused node with why.

The embedded model and a random ViT-B/32, both towers, every kind of graph that a bundle can have, also the dynamic INT8 one, which is for
ONNX Runtime alone. Seconds are of one build each, one after another; no plan runs here.

python benchmarks/tensorrt_rtx_build.py --output benchmarks/results/tensorrt_rtx_build.json
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipq.engines.tensorrt.build import BuildOptions, build_plan
from clipq.engines.tensorrt.parse import GraphRefusedError
from clipq.errors import ClipqError
from clipq.export.pipeline import export_bundle
from clipq.files import write_json
from clipq.machine import record, usable_cores
from clipq.recipe import Recipe

MODELS = ("demo", "ViT-B-32:random")
ENGINES = ("torch-fp32", "ort-int8-dynamic", *(f"trtrtx-{precision}" for precision in ("fp32", "fp16", "bf16", "int8", "fp8")))
BATCH = (1, 32, 128)
KEPT = ("build_seconds", "parse_seconds", "size_bytes", "layers", "types", "warnings", "compute_capabilities", "title")


def export_graphs(model: str, folder: Path, calib_n: int) -> Path:
    """Export every graph of both towers and return their folder; the time of a build does not depend on how well ranges are chosen."""
    recipe = Recipe(model, ENGINES, towers=("image", "text"), calib="synthetic:scenes", calib_n=calib_n, graphs_only=True)
    return export_bundle(recipe, folder, resume=False).folder / "towers"


def try_build(graph: Path, folder: Path) -> dict[str, Any]:
    """Build one graph and return what it took, or every refused node and why."""
    precision = graph.name.split(".")[1].split("-")[0]
    plan = folder / "tried.plan"
    try:
        facts = build_plan("tensorrt-rtx", graph, plan, precision, BuildOptions(batch=BATCH))
    except GraphRefusedError as error:
        return {"builds": False, "graph_bytes": graph.stat().st_size, "refused": [asdict(node) for node in error.nodes]}
    except ClipqError as error:
        return {"builds": False, "graph_bytes": graph.stat().st_size, "error": str(error)}
    plan.unlink()
    return {"builds": True, "graph_bytes": graph.stat().st_size, **{key: facts[key] for key in KEPT}}


def run(models: tuple[str, ...], calib_n: int) -> dict[str, Any]:
    """Return model -> graph -> what its build took."""
    results: dict[str, Any] = {}
    for index, model in enumerate(models):
        with tempfile.TemporaryDirectory() as name:
            graphs = sorted(export_graphs(model, Path(name) / f"bundle{index}", calib_n).glob("*.onnx"))
            results[model] = {graph.stem: try_build(graph, Path(name)) for graph in graphs}
    return results


def main() -> None:
    """Build, print one line per graph and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--calib-n", type=int, default=16)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = run(tuple(arguments.models), arguments.calib_n)
    for model, graphs in results.items():
        for graph, found in graphs.items():
            said = f"{found['build_seconds']:6.1f} s {found['size_bytes'] / 1e6:7.1f} MB" if found["builds"] else "refused"
            print(f"{model:16s} {graph:20s} {said}")
    if arguments.output:
        write_json(arguments.output, record("tensorrt_rtx_build", {"threads": usable_cores(), "batch": list(BATCH), "results": results}))


if __name__ == "__main__":
    main()
