"""Moments of texts: tokens behind the end count nowhere, where they change no embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_towers import inputs_of

from clipq.export.quantize.collect import write_observed
from clipq.export.quantize.graph import load_graph, open_on_cpu
from clipq.export.quantize.layers import split_gemms
from clipq.export.quantize.moments import Moments, collect_moments, end_is_last, up_to_end
from clipq.export.quantize.observe import prepare

LIMIT = 127


def _moments(graph: Path, inputs: np.ndarray, folder: Path) -> dict[str, Moments]:
    layers = prepare(graph).layers
    scales = {layer.activation: np.float32(0.05) for layer in layers}
    return collect_moments(graph, layers, [inputs], folder, scales=scales, limit=LIMIT, second=True)


def _values(graph: Path, inputs: np.ndarray, folder: Path, tensors: list[str]) -> list[np.ndarray]:
    model = load_graph(graph)
    split_gemms(model)
    write_observed(model, tensors, folder / "watched.onnx")
    session = open_on_cpu(folder / "watched.onnx")
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: inputs})
    return found


def test_moments_of_a_text_tower_leave_its_padding_out(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """By a loop over the texts: means and counts are those of the tokens up to the end, in every layer of the blocks."""
    graph = towers("vit", "text")
    tokens = inputs_of(graph, 6)
    moments = _moments(graph, tokens, tmp_path)
    for (name, found), values in zip(moments.items(), _values(graph, tokens, tmp_path, list(moments)), strict=True):
        if values.ndim != 3:
            continue
        rows = np.concatenate([row[: int(text.argmax()) + 1] for row, text in zip(values, tokens, strict=True)])
        assert found.count == len(rows) < tokens.size, name
        np.testing.assert_allclose(found.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-7)


def test_padding_changes_no_moment(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Other numbers behind the ends, the same moments."""
    graph = towers("vit", "text")
    tokens = inputs_of(graph, 6)
    other = np.where(up_to_end(tokens), tokens, 7).astype(np.int32)
    assert (tokens != other).any()
    one, two = _moments(graph, tokens, tmp_path), _moments(graph, other, tmp_path)
    for name, found in one.items():
        np.testing.assert_allclose(found.total, two[name].total, rtol=1e-4, atol=1e-4)
        assert found.count == two[name].count


def _mean_of_tokens(folder: Path) -> Path:
    """Write a graph whose embedding is the mean over all tokens, padding too."""
    table = numpy_helper.from_array(np.random.default_rng(0).standard_normal((50_000, 4)).astype(np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["out"], axes=[1], keepdims=0),
    ]
    ends = (("tokens", TensorProto.INT32, ["n", 77]), ("out", TensorProto.FLOAT, ["n", 4]))
    one, two = (helper.make_tensor_value_info(*end) for end in ends)
    graph = helper.make_graph(nodes, "mean", [one], [two], [table])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "mean.onnx"))
    return folder / "mean.onnx"


def test_the_end_is_tried_and_not_assumed(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """CLIP's text tower ends at the end token; a mean over all tokens, pixels, and texts without padding do not count as such."""
    graph = towers("vit", "text")
    tokens = inputs_of(graph, 4)
    assert end_is_last(graph, tokens)
    assert not end_is_last(_mean_of_tokens(tmp_path), tokens)
    image = towers("vit", "image")
    assert not end_is_last(image, inputs_of(image, 2))
    full = np.where(np.arange(tokens.shape[1]) == tokens.shape[1] - 1, 49407, np.minimum(tokens, 400)).astype(np.int32)
    assert not end_is_last(graph, full)


@pytest.mark.parametrize("seed", range(3))
def test_up_to_end_is_a_loop(seed: int) -> None:
    """Against the plainest loop."""
    tokens = np.random.default_rng(seed).integers(0, 30, (5, 9))
    for row, found in zip(tokens, up_to_end(tokens), strict=True):
        assert [place <= list(row).index(max(row)) for place in range(len(row))] == found.tolist()
