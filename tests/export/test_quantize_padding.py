"""Which tokens of texts count: tried on the tower, and counted nowhere when they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from toy_towers import inputs_of

from clipq.export.quantize.observe import observe
from clipq.export.quantize.padding import Padding, counted, padding_of, up_to_end


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
    """CLIP's text tower ends at the end token; a mean over all tokens does not; pixels, and texts without padding, count whole."""
    graph = towers("vit", "text")
    tokens = inputs_of(graph, 4)
    read = padding_of(graph).read(tokens)
    assert read is not None
    assert not read.all()
    np.testing.assert_array_equal(read, up_to_end(tokens))
    assert padding_of(_mean_of_tokens(tmp_path)).read(tokens) is None
    image = towers("vit", "image")
    assert padding_of(image).read(inputs_of(image, 2)) is None


@pytest.mark.parametrize("pad", [0, 1, 2])
def test_the_trial_puts_other_tokens_behind_the_end(tmp_path: Path, pad: int) -> None:
    """Whatever the padding is, a mean over all tokens is found out."""
    tokens = np.full((2, 77), pad, np.int32)
    tokens[:, 5] = 49407
    assert padding_of(_mean_of_tokens(tmp_path)).read(tokens) is None


def test_texts_without_padding_decide_nothing(towers: Callable[[str, str], Path]) -> None:
    """They count whole, without a trial; the first texts that end early are tried, once."""
    graph, calls = towers("vit", "text"), 0
    tokens, known = inputs_of(graph, 4), padding_of(graph)

    def embed(inputs: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        found: np.ndarray = known._embed(inputs)
        return found

    padding = Padding(embed)
    full = np.where(np.arange(tokens.shape[1]) == tokens.shape[1] - 1, 49407, np.minimum(tokens, 400)).astype(np.int32)
    assert padding.read(full) is None
    assert calls == 0
    assert padding.read(tokens) is not None
    assert padding.read(tokens[:2]) is not None
    assert calls == 1


@given(st.integers(0, 2**32 - 1))
def test_up_to_end_is_a_loop(seed: int) -> None:
    """Against the plainest loop."""
    tokens = np.random.default_rng(seed).integers(0, 30, (5, 9))
    for row, found in zip(tokens, up_to_end(tokens), strict=True):
        assert [place <= list(row).index(max(row)) for place in range(len(row))] == found.tolist()


@pytest.mark.parametrize(("shape", "axis"), [((3, 7, 4), 1), ((3, 2, 7, 4), 2), ((3, 2, 4, 7), 3)])
def test_counted_finds_the_tokens(shape: tuple[int, ...], axis: int) -> None:
    """By a loop, wherever the tokens stand; of a tensor without them all values count."""
    values = np.random.default_rng(axis).standard_normal(shape).astype(np.float32)
    read = np.random.default_rng(0).random((3, 7)) < 0.5
    expected = [np.take(values[text], token, axis=axis - 1) for text in range(3) for token in range(7) if read[text, token]]
    np.testing.assert_array_equal(np.sort(counted(values, read).ravel()), np.sort(np.concatenate(expected, axis=None)))
    assert counted(values, None) is values
    pooled = np.zeros((3, 4), np.float32)
    assert counted(pooled, read) is pooled


def test_ranges_leave_padding_out(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Other tokens behind the ends give the same histograms, of attention's queries, keys and values too; other texts do not."""
    graph = towers("vit", "text")
    tokens = inputs_of(graph, 6)
    other = np.where(up_to_end(tokens), tokens, 7).astype(np.int32)
    assert (tokens != other).any()
    one, two, else_ = (observe(graph, [each], tmp_path, attention=True).histograms for each in (tokens, other, tokens[:3]))
    for name, found in one.items():
        assert found.largest == pytest.approx(two[name].largest, rel=1e-4), name
        assert found.counts.sum() == two[name].counts.sum()
        assert found.counts.sum() > else_[name].counts.sum()
