"""Turns one tower of an open_clip model into an ONNX graph: pixels or tokens in, raw embeddings out, any batch size."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from clipq import __version__
from clipq.engines.base import Tower
from clipq.engines.torch.checkpoint import Checkpoint
from clipq.engines.torch.patches import PatchTower
from clipq.engines.towers import INPUT_NAMES, OUTPUT_NAME, PATCHES_NAME
from clipq.errors import ClipqError, ExportError
from clipq.export.attention import plain_attention
from clipq.export.quantize.graph import publish, save_graph, scratch_folder

OPSET = 17  # the newest that TensorRT 8.6 reads, and the first with LayerNormalization as one operator
MASK_VALUE = -1e4  # exp of it is 0 in FP32 and FP16, and unlike -inf it leaves an activation range that can be quantized


def export_tower(checkpoint: Checkpoint, tower: Tower, target: Path, patches: PatchTower | None = None) -> None:
    """Write one tower as ONNX; the same checkpoint and versions give the same bytes.

    The graph takes ``pixels`` (float32 ``(batch, 3, height, width)``) or ``tokens`` (int32 ``(batch, context length)``) and gives
    ``embedding`` (float32 ``(batch, embed dim)``, not normalised). Weights too large for one file go into ``<name>.data`` beside it.

    Args:
        checkpoint: The model.
        tower: Which of its towers.
        target: Where the graph goes.
        patches: The image tower with its patch tokens, which become a second output, ``patches``, float32
            ``(batch, patches, embed dim)``, not normalised; None leaves them out.

    Raises:
        ExportError: PyTorch cannot express the tower in ONNX, or the graph breaks the ONNX specification.
    """
    with scratch_folder(target) as folder:
        _trace(checkpoint, tower, folder / "traced.onnx", patches)
        model = onnx.load(str(folder / "traced.onnx"))
        _make_finite(model.graph)
        _tidy(model, checkpoint, tower, patches)
        for leftover in folder.iterdir():
            leftover.unlink()
        save_graph(model, folder / target.name)
        _check(folder / target.name, tower)
        publish(folder / target.name, target)


class _Tower(torch.nn.Module):
    """One encoder as a module of its own, so that the exporter sees nothing of the other."""

    def __init__(self, model: Any, tower: Tower) -> None:
        super().__init__()
        self.model = model
        self.encode = model.encode_image if tower == "image" else model.encode_text

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.encode(batch, normalize=False)
        return embedding


def _trace(checkpoint: Checkpoint, tower: Tower, path: Path, patches: PatchTower | None) -> None:
    module = patches.eval() if patches else _Tower(checkpoint.model, tower).eval()
    outputs = [OUTPUT_NAME, PATCHES_NAME] if patches else [OUTPUT_NAME]
    try:
        with _exportable(), plain_attention(checkpoint.model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns of shapes it takes as fixed; the parity gate tries other batches
            torch.onnx.export(
                module,
                (_example(checkpoint, tower),),
                str(path),
                opset_version=OPSET,
                dynamo=False,
                input_names=[INPUT_NAMES[tower]],
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in (INPUT_NAMES[tower], *outputs)},
            )
    except (ClipqError, OSError):
        raise
    except Exception as error:  # the exporter raises many unrelated kinds
        first = str(error).strip().splitlines()[:1]
        raise ExportError(f"PyTorch cannot export the {tower} tower of {checkpoint.model_id}", found=" ".join(first)) from error


def _example(checkpoint: Checkpoint, tower: Tower) -> torch.Tensor:
    """Return a batch of two: with one, the tracer would take the batch size as a constant in some reshapes."""
    if tower == "image":
        return torch.zeros(2, 3, *checkpoint.preprocess.size)
    return torch.as_tensor(checkpoint.tokenizer(["a photo", "a drawing of it"])).to(torch.int32)


@contextlib.contextmanager
def _exportable() -> Iterator[None]:
    """Keep PyTorch from its fused transformer kernel, which has no ONNX form."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(value=before)


def _make_finite(graph: onnx.GraphProto) -> None:
    """Replace minus infinity in every constant (attention masks) by a finite value."""
    for tensor in _tensors(graph):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if np.isneginf(values).any():
            finite = np.where(np.isneginf(values), np.float32(MASK_VALUE), values)
            tensor.CopyFrom(numpy_helper.from_array(finite, tensor.name))


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def _tidy(model: ModelProto, checkpoint: Checkpoint, tower: Tower, patches: PatchTower | None) -> None:
    """Fix the output shapes, drop what varies without meaning, and write what the file is into its metadata."""
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = checkpoint.embed_dim
    if patches:
        for dim, size in enumerate((math.prod(patches.grid), checkpoint.embed_dim), start=1):
            model.graph.output[1].type.tensor_type.shape.dim[dim].dim_value = size
    model.graph.name = f"{tower} tower"
    _drop_doc_strings(model.graph.node)
    onnx.helper.set_model_props(model, tower_metadata(checkpoint, tower))


def _drop_doc_strings(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        node.ClearField("doc_string")


def tower_metadata(checkpoint: Checkpoint, tower: Tower) -> dict[str, str]:
    """Return what a tower's file says about itself; an engine of another model is refused by it."""
    values = {
        "version": __version__,
        "model": checkpoint.model_id,
        "state_sha256": checkpoint.state_sha256,
        "tower": tower,
        "embed_dim": checkpoint.embed_dim,
        "logit_scale": repr(checkpoint.logit_scale),
        "logit_bias": "none" if checkpoint.logit_bias is None else repr(checkpoint.logit_bias),
        "loss": checkpoint.loss,
        "pooling": checkpoint.pooling,
        "context_length": checkpoint.context_length,
        "activation": "quick_gelu" if checkpoint.quick_gelu else "gelu",
        "normalized": "no",
    }
    return {f"clipq.{name}": str(value) for name, value in values.items()}


def _check(path: Path, tower: Tower) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the {tower} tower is not a valid ONNX graph", found=error) from error
