"""A plan gives embeddings only: the other outputs of a graph are left out, with a line that says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tensorrt_names import VERSIONS, Recorder

from clipq.engines.tensorrt import build as build_module
from clipq.engines.tensorrt.adapter import load_api
from clipq.engines.tensorrt.build import BuildOptions, build_plan
from clipq.engines.tensorrt.parse import drop_other_outputs
from clipq.errors import MissingRuntimeError


@pytest.mark.parametrize("version", VERSIONS)
def test_only_the_embedding_stays(version: str) -> None:
    """In every version the others are unmarked; a network of one output is not touched."""
    tensors = [SimpleNamespace(name=name) for name in ("embedding", "patches", "more")]
    network = Recorder(version, "INetworkDefinition", num_outputs=3, get_output=lambda index: tensors[index])
    assert drop_other_outputs(network, "embedding") == ["patches", "more"]
    assert [call for call in network.calls if call[0] == "unmark_output"] == [("unmark_output", tensors[1]), ("unmark_output", tensors[2])]
    single = Recorder(version, "INetworkDefinition", num_outputs=1)
    assert drop_other_outputs(single, "embedding") == []
    assert single.calls == []


def test_a_plan_is_built_of_a_graph_with_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real TensorRT-RTX builder leaves the branch out of the plan."""
    try:
        load_api("tensorrt-rtx")
    except MissingRuntimeError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in {"w": (16, 8), "branch": (16, 4096)}.items()}
    nodes = [helper.make_node("MatMul", ["pixels", "w"], ["embedding"]), helper.make_node("MatMul", ["pixels", "branch"], ["patches"])]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("embedding", 8), ("patches", 4096))
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 16])
    graph = helper.make_graph(nodes, "toy", [pixels], values, [numpy_helper.from_array(array, name) for name, array in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "toy.onnx"))
    options = BuildOptions(batch=(1, 8, 32), timing_cache=tmp_path / "timings")
    with_branch_left_out = build_plan("tensorrt-rtx", tmp_path / "toy.onnx", tmp_path / "image.plan", "fp32", options)
    assert "image.plan: a plan gives embeddings only, so patches of toy.onnx are left out" in capsys.readouterr().err
    monkeypatch.setattr(build_module, "drop_other_outputs", lambda *_: [])
    whole = build_plan("tensorrt-rtx", tmp_path / "toy.onnx", tmp_path / "whole.plan", "fp32", options)
    assert whole["size_bytes"] - with_branch_left_out["size_bytes"] > weights["branch"].nbytes // 2
