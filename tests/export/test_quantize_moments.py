"""Moments of texts: tokens behind the end count nowhere, where they change no embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from toy_towers import inputs_of

from clipq.export.quantize.collect import write_observed
from clipq.export.quantize.graph import load_graph, open_on_cpu
from clipq.export.quantize.layers import split_gemms
from clipq.export.quantize.moments import Moments, collect_moments
from clipq.export.quantize.observe import prepare
from clipq.export.quantize.padding import up_to_end

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
