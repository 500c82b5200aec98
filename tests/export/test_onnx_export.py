"""Towers of every family become ONNX graphs that match PyTorch, say what they are, and are safe to quantize."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from clipq.engines.base import Tower
from clipq.engines.torch.checkpoint import Checkpoint, load_checkpoint
from clipq.errors import ExportError
from clipq.export import onnx as module
from clipq.export.golden import make_golden
from clipq.export.onnx import MASK_VALUE, OPSET, export_tower
from clipq.export.parity import check_parity
from clipq.export.quantize import graph as graph_module
from clipq.files import sha256_file

FAMILIES = ("vit", "resnet", "siglip", "coca", "convnext")
TOWERS: tuple[Tower, ...] = ("image", "text")


def _constants(model: onnx.ModelProto) -> list[np.ndarray]:
    nodes = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.name == "value"]
    return [numpy_helper.to_array(tensor) for tensor in [*model.graph.initializer, *nodes]]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_matches_pytorch(tiny_checkpoint: Callable[[str], str], family: str, tmp_path: Path) -> None:
    """Both towers agree to FP32 rounding at batch sizes 1 and 5, though they were traced with 2."""
    checkpoint = load_checkpoint(tiny_checkpoint(family))
    golden = make_golden(checkpoint)
    for tower in TOWERS:
        export_tower(checkpoint, tower, tmp_path / f"{tower}.onnx")
        figures = check_parity(tmp_path / f"{tower}.onnx", golden.inputs(tower), golden.outputs(tower))
        assert figures["max_abs_error"] < 1e-5 * figures["max_abs_output"]
        assert figures["min_centred_cosine"] > 1 - 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.onnx", "text.onnx"]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[[str], str]) -> Checkpoint:
    """The tiny ViT."""
    return load_checkpoint(tiny_checkpoint("vit"))


def _export(checkpoint: Checkpoint, tower: Tower, folder: Path) -> onnx.ModelProto:
    export_tower(checkpoint, tower, folder / "tower.onnx")
    return onnx.load(str(folder / "tower.onnx"))


@pytest.mark.parametrize(
    ("tower", "name", "kind", "shape"),
    [("image", "pixels", onnx.TensorProto.FLOAT, ["batch", 3, 32, 32]), ("text", "tokens", onnx.TensorProto.INT32, ["batch", 77])],
)
def test_names_types_and_shapes_are_the_contract(
    checkpoint: Checkpoint, tmp_path: Path, tower: Tower, name: str, kind: int, shape: list[object]
) -> None:
    """Only the batch is free; opset 17 is the newest that TensorRT 8.6 reads."""
    model = _export(checkpoint, tower, tmp_path)
    (given,), (taken,) = model.graph.input, model.graph.output
    assert (given.name, given.type.tensor_type.elem_type) == (name, kind)
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == shape
    assert (taken.name, [dim.dim_param or dim.dim_value for dim in taken.type.tensor_type.shape.dim]) == ("embedding", ["batch", 24])
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]


@pytest.mark.parametrize("tower", TOWERS)
def test_layer_norm_is_one_operator(checkpoint: Checkpoint, tmp_path: Path, tower: Tower) -> None:
    """Written as Pow it would overflow in FP16."""
    operators = [node.op_type for node in _export(checkpoint, tower, tmp_path).graph.node]
    assert operators.count("LayerNormalization") >= 5
    assert "Pow" not in operators


@pytest.mark.parametrize("family", ["vit", "coca"])
def test_masks_are_finite(tiny_checkpoint: Callable[[str], str], family: str, tmp_path: Path) -> None:
    """The causal mask and CoCa's padding mask hold -10,000 instead of minus infinity."""
    constants = _constants(_export(load_checkpoint(tiny_checkpoint(family)), "text", tmp_path))
    assert all(np.isfinite(value).all() for value in constants)
    assert any((value == MASK_VALUE).any() for value in constants)


def test_the_metadata_says_what_the_file_is(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """A SigLIP tower names its model, its hash, its bias and its pooling."""
    siglip = load_checkpoint(tiny_checkpoint("siglip"))
    said = {entry.key: entry.value for entry in _export(siglip, "text", tmp_path).metadata_props}
    assert (said["clipq.model"], said["clipq.state_sha256"]) == (siglip.model_id, siglip.state_sha256)
    assert (said["clipq.tower"], said["clipq.pooling"], said["clipq.loss"]) == ("text", "last", "sigmoid")
    assert (float(said["clipq.logit_scale"]), float(said["clipq.logit_bias"])) == (siglip.logit_scale, -10.0)
    assert said["clipq.embed_dim"] == "64"


def test_the_same_model_gives_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Two exports have one hash."""
    hashes = set()
    for name in ("a", "b"):
        export_tower(checkpoint, "text", tmp_path / name / "text.onnx")
        hashes.add(sha256_file(tmp_path / name / "text.onnx"))
    assert len(hashes) == 1


def test_large_models_put_their_weights_beside_the_graph(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of one file the weights stand in one sibling, and the pair matches PyTorch."""
    monkeypatch.setattr(graph_module, "EXTERNAL_DATA_BYTES", 1000)
    export_tower(checkpoint, "text", tmp_path / "text.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.onnx", "text.onnx.data"]
    assert (tmp_path / "text.onnx.data").stat().st_size > 10 * (tmp_path / "text.onnx").stat().st_size
    golden = make_golden(checkpoint)
    assert check_parity(tmp_path / "text.onnx", golden.tokens, golden.text_embedding)["min_cosine"] > 0.999999


def test_the_export_leaves_pytorch_as_it_was(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The fused kernel that has no ONNX form is switched on again."""
    assert torch.backends.mha.get_fastpath_enabled()
    export_tower(checkpoint, "image", tmp_path / "image.onnx")
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_tower_that_onnx_cannot_express_is_one_clear_line(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the exporter raises becomes an ExportError that names tower and model, and no file stays."""
    monkeypatch.setattr(module._Tower, "forward", lambda self, batch: torch.linalg.matrix_exp(batch))
    with pytest.raises(ExportError, match="PyTorch cannot export the image tower of local-dir:"):
        export_tower(checkpoint, "image", tmp_path / "image.onnx")
    assert list(tmp_path.iterdir()) == []
