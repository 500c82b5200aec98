"""The parity gate fails closed: a graph that differs, breaks or cannot be read is deleted and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipq.errors import ExportError
from clipq.export.parity import check_parity, compare_outputs, measure

INPUTS = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
EXPECTED = INPUTS @ WEIGHT


def _write(path: Path, weight: np.ndarray, *, batch: object = "batch") -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_a_graph_that_matches_passes_with_its_figures(tmp_path: Path) -> None:
    """Rounding is far below the limits, and the file stays."""
    figures = check_parity(_write(tmp_path / "a.onnx", WEIGHT), INPUTS, EXPECTED)
    assert figures["max_abs_error"] < 1e-5
    assert figures["min_cosine"] > 1 - 1e-9
    assert (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(
    ("weight", "limit"),
    [
        (WEIGHT * 1.01, "expected max_abs_error"),
        (-WEIGHT, "expected max_abs_error"),
        (WEIGHT + np.eye(4, 3) * 0.05, "expected max_abs_error"),
    ],
)
def test_a_graph_that_differs_is_deleted(tmp_path: Path, weight: np.ndarray, limit: str) -> None:
    """One per cent is too much; the line gives the figures and the limit; external data goes too."""
    path = _write(tmp_path / "a.onnx", weight)
    (tmp_path / "a.onnx.data").touch()
    with pytest.raises(ExportError, match=rf"does not match PyTorch and was deleted; found max_abs_error .*{limit}"):
        check_parity(path, INPUTS, EXPECTED)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_term_under_a_common_mean_is_seen(tmp_path: Path) -> None:
    """With a large common mean the plain cosine is blind; the centred one is not."""
    mean = np.float32(1000)
    found = compare_outputs(EXPECTED[::-1].copy() + mean, EXPECTED + mean)
    assert found["min_cosine"] > 0.9999
    assert found["min_centred_cosine"] < 0.9


def test_a_truncated_graph_is_deleted(tmp_path: Path) -> None:
    """Half a file is one clear line."""
    path = _write(tmp_path / "a.onnx", WEIGHT)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot run a\.onnx"):
        check_parity(path, INPUTS, EXPECTED)
    assert not path.exists()


def test_a_fixed_batch_size_is_found(tmp_path: Path) -> None:
    """A graph that took the example's batch size as a constant does not ship."""
    with pytest.raises(ExportError, match="cannot run"):
        check_parity(_write(tmp_path / "a.onnx", WEIGHT, batch=2), INPUTS, EXPECTED)


def test_nan_is_an_error(tmp_path: Path) -> None:
    """NaN compares false with everything, so it is looked for."""
    path = _write(tmp_path / "a.onnx", np.full((4, 3), np.nan))
    with pytest.raises(ExportError, match="gives NaN or infinity"):
        measure(path, INPUTS, EXPECTED)


def test_measuring_has_no_limit(tmp_path: Path) -> None:
    """A quantized graph may be far away: its distance is told, the file stays."""
    path = _write(tmp_path / "a.onnx", np.round(WEIGHT))
    assert measure(path, INPUTS, EXPECTED)["min_cosine"] < 0.999
    assert path.exists()
