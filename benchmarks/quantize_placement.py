"""What each calibration method and each placement of INT8 and FP8 costs on trained image towers: centred cosine against FP32.

Calibrated on one data set, measured on its own test split and on another data set. Needs checkpoints in open_clip's format and
photographs in the webdataset layout (not part of this project):

    python benchmarks/quantize_placement.py --shared FOLDER --output benchmarks/results/quantize_placement.json
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.calib_data.index import build_index
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.table import open_source
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.export.onnx import export_tower
from clipq.export.quantize.blocks import parts_of
from clipq.export.quantize.fp8 import write_fp8
from clipq.export.quantize.graph import open_on_cpu
from clipq.export.quantize.observe import Observed, observe
from clipq.export.quantize.static import write_int8
from clipq.files import write_json
from clipq.machine import record
from clipq.recipe import CALIBRATION_METHODS

Array = npt.NDArray[np.float32]
MODELS = ("photo-base", "photo-over", "photo-under")
CALIBRATION, TESTS = "imagenette:train", ("imagenette:test", "cifar10:test")


def pixels(shared: Path, data: str, preprocess: Preprocess, limit: int) -> Array:
    """Return the preprocessed pixels of a random subset of a data set."""
    source = open_source(f"wds:{shared / 'data' / data}")
    found = batches(source, build_index(source, limit=limit, seed=0), preprocess)
    return np.concatenate([np.asarray(batch.pixels) for batch in found])


def embed(graph: Path, inputs: Array) -> Array:
    """Return the embeddings of all inputs."""
    session = open_on_cpu(graph)
    return np.concatenate([session.run(None, {"pixels": inputs[i : i + 50]})[0] for i in range(0, len(inputs), 50)])


def variants(observed: Observed) -> dict[str, Any]:
    """Return name -> function that writes one quantized form to a path."""
    fc2 = {node: "left out" for part, nodes in parts_of(observed).items() if part.endswith(":fc2") for node in nodes}
    forms: dict[str, Any] = {f"int8 {method}": partial(write_int8, observed, method=method) for method in CALIBRATION_METHODS}
    return {
        **forms,
        "int8 percentile, attention too": partial(write_int8, observed, method="percentile", mha="int8"),
        "int8 percentile, without fc2": partial(write_int8, observed, method="percentile", keep=fc2),
        "fp8": partial(write_fp8, observed),
        "fp8, attention too": partial(write_fp8, observed, mha="fp8"),
    }


def cosines(reference: Array, other: Array) -> dict[str, float]:
    """Return mean and worst centred cosine."""
    a, b = reference - reference.mean(axis=0), other - reference.mean(axis=0)
    values = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return {"mean": float(values.mean()), "min": float(values.min())}


def measure(shared: Path, name: str, calib_n: int, n: int) -> dict[str, Any]:
    """Return the cosines of every variant of one model on every test set."""
    checkpoint = load_checkpoint(f"local-dir:{shared / 'models' / name}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        export_tower(checkpoint, "image", folder / "fp32.onnx")
        calibration = pixels(shared, CALIBRATION, checkpoint.preprocess, calib_n)
        observed = observe(folder / "fp32.onnx", [calibration], folder, attention=True)
        tests = {data: pixels(shared, data, checkpoint.preprocess, n) for data in TESTS}
        reference = {data: embed(folder / "fp32.onnx", inputs) for data, inputs in tests.items()}
        for variant, write in variants(observed).items():
            write(target=folder / "variant.onnx")
            results[variant] = {data: cosines(reference[data], embed(folder / "variant.onnx", inputs)) for data, inputs in tests.items()}
            said = (f"{data} {v['mean']:.4f} (worst {v['min']:.3f})" for data, v in results[variant].items())
            print(name, variant, *said, flush=True)
    return results


def main() -> None:
    """Measure every model and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--calib-n", type=int, default=512)
    parser.add_argument("-n", type=int, default=1000, help="test images per data set")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = {name: measure(arguments.shared, name, arguments.calib_n, arguments.n) for name in MODELS}
    if arguments.output:
        write_json(arguments.output, record("quantize_placement", {"calib_n": arguments.calib_n, "n": arguments.n, "results": results}))


if __name__ == "__main__":
    main()
