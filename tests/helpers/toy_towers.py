"""Inputs, embeddings and ONNX Runtime's own operators for tests of small exported towers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from clipq.engines.onnxruntime.options import session_options

Array = np.ndarray


def inputs_of(path: Path, n: int, seed: int = 0) -> Array:
    """Return ``n`` random pixels, or token rows with the end token somewhere."""
    shape = [dim.dim_value for dim in onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim][1:]
    rng = np.random.default_rng(seed)
    if len(shape) == 1:
        tokens = rng.integers(1, 400, (n, *shape)).astype(np.int32)
        tokens[np.arange(n), rng.integers(5, shape[0], n)] = 49407
        return tokens
    return rng.standard_normal((n, *shape)).astype(np.float32)


def _session(path: Path, **values: object) -> onnxruntime.InferenceSession:
    options = session_options()
    for name, value in values.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def embed(path: Path, inputs: Array) -> Array:
    """Return the graph's first output on ONNX Runtime."""
    session = _session(path)
    output: Array = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return output


def optimized_operators(path: Path) -> Counter[str]:
    """Return the operators of the graph that ONNX Runtime makes of a graph."""
    written = path.with_suffix(".optimized")
    _session(path, optimized_model_filepath=str(written))
    return Counter(node.op_type for node in onnx.load(str(written)).graph.node)


def kernels_that_ran(path: Path, inputs: Array) -> Counter[str]:
    """Return the operators whose kernels one inference ran, by ONNX Runtime's profile."""
    session = _session(path, enable_profiling=True, profile_file_prefix=str(path.with_suffix("")))
    session.run(None, {session.get_inputs()[0].name: inputs})
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(event["args"]["op_name"] for event in events if str(event["name"]).endswith("_kernel_time"))


def centred_cosine(a: Array, b: Array) -> float:
    """Return the mean cosine of rows after the mean of ``a`` is taken from both."""
    a, b = a - a.mean(axis=0), b - a.mean(axis=0)
    return float(np.mean(np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))
