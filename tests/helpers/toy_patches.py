"""The toy bundle with patch tokens: each cell's colour times a matrix, a second output of every image graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from toy_bundle import DIM, make_toy_bundle

from clipq.artifact import Bundle, write_manifest

GRID = (4, 4)
IMAGES = ("towers/image.fp32.onnx", "engines/ort-int8-dynamic/image.onnx", "engines/ort-int8-static/image.onnx")


def add_patches(model: onnx.ModelProto) -> None:
    """Give an image graph of the toy bundle its second output; noise of its matrix stands for quantization."""
    noise = float(numpy_helper.to_array(model.graph.initializer[0])[0, 0])  # differs between the engines
    matrix = np.random.default_rng(2).standard_normal((3, DIM)) + 0.1 * noise
    model.graph.initializer.append(numpy_helper.from_array(matrix.astype(np.float32), "colours"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 3, 16]), "cells"))
    model.graph.node.extend(
        [
            helper.make_node("Reshape", ["pooled", "cells"], ["rows"]),
            helper.make_node("Transpose", ["rows"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["turned", "colours"], ["patches"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["batch", 16, DIM]))


def make_patch_bundle(folder: Path, grid: Sequence[int] | object = GRID, *, without: Sequence[str] = ()) -> Bundle:
    """Write the toy bundle with patch tokens.

    Args:
        folder: Where.
        grid: What the manifest says of them.
        without: Graphs that lack them all the same.
    """
    made = make_toy_bundle(folder, change={name: add_patches for name in IMAGES if name not in without})
    recipe = {**made.manifest.recipe, "patch_grid": list(grid) if isinstance(grid, tuple) else grid}
    write_manifest(folder, replace(made.manifest, recipe=recipe))
    return Bundle.open(folder)
