"""A tower with quantizers: the same function without rounding, and the exported graph the same function with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_towers import embed

from clipq.engines.torch.checkpoint import Checkpoint, load_checkpoint
from clipq.errors import ExportError
from clipq.export.onnx import export_tower
from clipq.export.qat.plan import PLANS
from clipq.export.qat.taught import MIN_COSINE, UNTRAINED, Taught, compare, taught
from clipq.export.qat.wrap import Wrapped, begin, unwrap, wrap
from clipq.export.quantize.graph import open_on_cpu
from clipq.export.quantize.observe import prepare
from clipq.export.quantize.padding import up_to_end
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.static import write_scheme
from clipq.export.transform.capture import padding_of_model
from clipq.methods import BITS

TOWERS = ("image", "text")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[[str], str]) -> Checkpoint:
    """The tiny ViT; do not change it."""
    return load_checkpoint(tiny_checkpoint("vit"))


def _inputs(tower: str, rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if tower == "image":
        return rng.standard_normal((rows, 3, 32, 32)).astype(np.float32)
    tokens = rng.integers(1, 400, (rows, 77)).astype(np.int32)
    tokens[np.arange(rows), rng.integers(5, 77, rows)] = 49407
    return tokens


def _wrapped(checkpoint: Checkpoint, tower: Any, method: str, bits: str, mha: Any = "fp16", kept: Collection[str] = ()) -> Wrapped:
    makers = PLANS[method].makers(BITS[bits], mha)
    wrapped = wrap(copy.deepcopy(checkpoint.model), tower, checkpoint.model_id, makers, kept)
    begin(wrapped, iter([torch.from_numpy(_inputs(tower, 8, seed=1))]), padding_of_model(checkpoint.model, tower))
    wrapped.train(mode=False)
    return wrapped


def _embed(wrapped: Wrapped, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return wrapped.embed(torch.from_numpy(inputs)).numpy()


@pytest.mark.parametrize("tower", TOWERS)
def test_watching_rounds_nothing(checkpoint: Checkpoint, tower: Any) -> None:
    """While first ranges are looked for, the tower computes what it did."""
    wrapped = wrap(copy.deepcopy(checkpoint.model), tower, "tiny", PLANS["lsq-plus"].makers(BITS["W8A8"], "int8"))
    for observer in wrapped.observers:
        observer.watch()
    inputs = _inputs(tower, 3)
    np.testing.assert_allclose(_embed(wrapped, inputs), checkpoint.embed(tower, inputs), atol=1e-5)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("method", ["lsq", "lsq-plus", "dorefa"])
def test_offsets_fold_exactly(checkpoint: Checkpoint, tower: Any, method: str) -> None:
    """The tower without quantizers, offsets in its biases, is FP32's with rounded weights: in 8 bits nearly the tower itself."""
    wrapped = _wrapped(checkpoint, tower, method, "W8A8")
    offsets = unwrap(wrapped)
    assert bool(offsets) == (method == "lsq-plus")
    inputs = _inputs(tower, 4)
    expected = checkpoint.embed(tower, inputs)
    assert np.abs(_embed(wrapped, inputs) - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("method", ["lsq", "lsq-plus", "dorefa"])
def test_training_begins_without_the_mean_error_of_rounded_weights(checkpoint: Checkpoint, tower: Any, method: str) -> None:
    """For the mean input of the batches, seen by hooks on the FP32 tower, every layer with rounded weights gives FP32's result."""
    model = copy.deepcopy(checkpoint.model)
    wrapped = wrap(copy.deepcopy(model), tower, checkpoint.model_id, PLANS[method].makers(BITS["W4A4"], "fp16"))
    batches = [torch.from_numpy(_inputs(tower, rows, seed)) for rows, seed in ((8, 1), (3, 2))]
    blocks = {spot.block.name: model.get_submodule(spot.block.name) for spot in wrapped.spots}
    seen: dict[str, list[torch.Tensor]] = {f"{name}:{part}": [] for name in blocks for part in ("fc1", "fc2")}
    for name, block in blocks.items():
        for part, layer in (("fc1", block.mlp.c_fc), ("fc2", block.mlp.c_proj)):
            layer.register_forward_pre_hook(lambda _, inputs, key=f"{name}:{part}": seen[key].append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            (model.encode_image if tower == "image" else model.encode_text)(batch)
        begin(wrapped, iter(batches), padding_of_model(checkpoint.model, tower))
        read = [torch.from_numpy(up_to_end(batch.numpy())) if tower == "text" else ... for batch in batches]
        means = {}
        for key, rows in seen.items():
            counted = [row[mask].flatten(0, -2) for row, mask in zip(rows, read, strict=True)]
            means[key] = torch.cat(counted).mean(dim=0)
        for spot in wrapped.spots:
            if spot.part not in ("fc1", "fc2"):
                continue
            exact = blocks[spot.block.name].mlp.c_fc if spot.part == "fc1" else blocks[spot.block.name].mlp.c_proj
            layer = spot.block.module.mlp.c_fc if spot.part == "fc1" else spot.block.module.mlp.c_proj
            mean = means[f"{spot.block.name}:{spot.part}"]
            found = spot.site.weight(layer.original.weight) @ mean + layer.original.bias
            torch.testing.assert_close(found, exact(mean), rtol=1e-4, atol=1e-5)
            assert not torch.allclose(layer.original.bias, exact.bias, atol=1e-5), "rounding to 4 bits has a mean error"


@pytest.mark.parametrize("tower", TOWERS)
def test_the_mean_error_of_the_projection_is_taken_out(checkpoint: Checkpoint, tower: Any) -> None:
    """Queries have their scale in the rounded weight and not in the bias that is trained; for the mean input all three are FP32's."""
    wrapped = _wrapped(checkpoint, tower, "lsq", "W4A4")
    for spot in wrapped.spots:
        if spot.part == "qkv":
            attention = spot.block.module.attn
            plain = checkpoint.model.get_submodule(f"{spot.block.name}.attn")
            mean = spot.site.reads.mean
            weight, bias = attention.projection()
            expected = (plain.in_proj_weight @ mean + plain.in_proj_bias) * attention.scale
            torch.testing.assert_close(spot.site.weight(weight) @ mean + bias, expected, rtol=1e-4, atol=1e-5)


def _write(checkpoint: Checkpoint, wrapped: Wrapped, bits: str, mha: Any, folder: Path) -> tuple[Path, dict[str, Any]]:
    known = taught(wrapped)
    unwrap(wrapped)
    export_tower(replace(checkpoint, model=wrapped.model.requires_grad_(requires_grad=False)), wrapped.tower, folder / "trained.onnx")
    observed = prepare(folder / "trained.onnx", attention=mha == "int8")
    learned, untrained = known.learned(observed)
    said = write_scheme(observed, folder / "q.onnx", Scheme("minmax", BITS[bits], learned=learned), mha=mha, keep=untrained)
    return folder / "q.onnx", said


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize(
    ("method", "bits", "mha"),
    [
        ("lsq-plus", "W8A8", "int8"),
        ("dorefa", "W4A4", "fp16"),
        ("pact", "W4A8", "int8"),
        ("lsq-plus", "W4A4", "int8"),
        ("ste", "W6A6", "fp16"),
    ],
)
def test_pytorch_and_onnx_runtime_agree(checkpoint: Checkpoint, tower: Any, method: str, bits: str, mha: Any, tmp_path: Path) -> None:
    """Fake quantization and the QDQ graph give the same embeddings on inputs that nobody has seen."""
    wrapped = _wrapped(checkpoint, tower, method, bits, mha)
    inputs = _inputs(tower, 16, seed=2)
    expected = _embed(wrapped, inputs)
    path, said = _write(checkpoint, wrapped, bits, mha, tmp_path)
    found = embed(path, inputs)
    cosine = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.mean() >= MIN_COSINE
    assert np.abs(expected - checkpoint.embed(tower, inputs)).mean() > 4 * np.abs(found - expected).mean(), "nearer to it than to FP32"
    assert said["counts"]["int8"] == {"MatMul": 12 if mha == "int8" else 8}


def test_kept_nodes_stay_fp32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A node to keep has no quantizer, and the graph leaves it alone and says why."""
    kept = "/visual/transformer/resblocks.1/mlp/c_proj/MatMul"
    wrapped = _wrapped(checkpoint, "image", "lsq", "W8A8", kept=[kept])
    assert len(wrapped.spots) == 7
    _, said = _write(checkpoint, wrapped, "W8A8", "fp16", tmp_path)
    assert said["fp32"][kept] == UNTRAINED
    assert kept not in said["quantized"]


def test_a_graph_with_another_weight_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Integers go only where the layer that was trained stands, and every one of them goes somewhere."""
    known = taught(_wrapped(checkpoint, "image", "lsq", "W8A8"))
    export_tower(checkpoint, "image", tmp_path / "fp32.onnx")
    observed = prepare(tmp_path / "fp32.onnx")
    with pytest.raises(ExportError, match="has another weight than the layer that was trained"):
        known.learned(observed)
    with pytest.raises(ExportError, match="a trained layer is not in the graph; found no /nowhere"):
        Taught({"/nowhere": 1.0}, {}, {}).learned(observed)


@pytest.mark.parametrize(("family", "tower"), [("resnet", "image"), ("siglip", "image"), ("convnext", "image")])
def test_other_towers_are_refused_in_a_line(family: str, tower: Any, tiny_checkpoint: Callable[[str], str]) -> None:
    """A tower without CLIP's blocks is an error that names it."""
    model = load_checkpoint(tiny_checkpoint(family)).model
    with pytest.raises(ExportError, match="training with quantization has no blocks to work on in the image tower of tiny"):
        wrap(copy.deepcopy(model), tower, "tiny", PLANS["lsq"].makers(BITS["W8A8"], "fp16"))


def test_training_sees_the_tower_alone(checkpoint: Checkpoint) -> None:
    """Neither the other tower, nor the logit scale, nor the table of tokens is trained; quantizers are apart from weights."""
    for tower in TOWERS:
        wrapped = _wrapped(checkpoint, tower, "lsq-plus", "W4A4")
        names = {*wrapped.scales(), *wrapped.backbone()}
        assert all(name.startswith("visual.") == (tower == "image") for name in names)
        assert not names & {"logit_scale", "token_embedding.weight"}
        assert len(wrapped.scales()) == 8 * 3, "a step and an offset of what is read, steps of the weight"
        assert all(name.endswith(("log_step", "log_steps", "moved")) for name in wrapped.scales())


def test_the_gate_between_pytorch_and_onnx_runtime() -> None:
    """Too many other nearest texts, a cosine that is low or large beside what quantization changes, and NaN are errors."""
    rng = np.random.default_rng(0)
    exact, noise = (rng.standard_normal((20, 8)).astype(np.float32) for _ in range(2))
    chosen = np.zeros(20, np.int64)
    one, two = chosen.copy(), chosen.copy()
    one[0], two[:2] = 1, 1
    figures = compare(exact + 0.009 * noise, exact + 0.01 * noise, exact, (chosen, one, one))
    assert (figures["agreement"], figures["images"], figures["inputs"]) == (0.95, 20, 20)
    assert figures["share"] == pytest.approx(0.01, rel=0.2), "a tenth as far, squared"
    with pytest.raises(ExportError, match="2 of 20 nearest texts differ"):
        compare(exact, exact, exact, (chosen, two, two))
    with pytest.raises(ExportError, match="does not compute what was trained"):
        compare(exact + 0.1 * noise, exact, exact, (chosen, chosen, chosen))
    with pytest.raises(ExportError, match="cosine nan"):
        compare(exact * np.nan, exact, exact, (chosen, chosen, chosen))


def test_what_is_far_away_must_be_small_beside_quantization() -> None:
    """In 4 bits a cosine of 0.999 passes beside a change that is 100 times as large; in 8 bits 0.99995 fails beside one as large."""
    rng = np.random.default_rng(0)
    exact, here, there = (rng.standard_normal((20, 8)).astype(np.float32) for _ in range(3))
    chosen = (np.zeros(20, np.int64),) * 3
    coarse = exact + 0.4 * here
    figures = compare(coarse + 0.04 * there, coarse, exact, chosen)
    assert figures["cosine"] < MIN_COSINE
    assert figures["share"] < 0.05
    fine = exact + 0.01 * here
    with pytest.raises(ExportError, match="of what quantization changes"):
        compare(fine + 0.01 * there, fine, exact, chosen)
    assert compare(fine + 0.006 * there, fine, exact, chosen)["share"] == pytest.approx(0.36, rel=0.1)


def test_onnx_runtime_without_optimizations_passes_the_gate(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The same graph in another order of sums: other roundings, which the gate has to let through, and not nothing."""
    wrapped = _wrapped(checkpoint, "image", "lsq", "W8A8")
    inputs = _inputs("image", 32, seed=3)
    path, _ = _write(checkpoint, wrapped, "W8A8", "fp16", tmp_path)
    plain = open_on_cpu(path, optimised=False, quantized_kernels=False)
    without = plain.run(None, {plain.get_inputs()[0].name: inputs})[0]
    chosen = (np.zeros(32, np.int64),) * 3
    assert 0 < compare(embed(path, inputs), without, checkpoint.embed("image", inputs), chosen)["share"] < 0.5


def test_answers_may_differ_as_far_as_the_distance_explains() -> None:
    """Of 10 answers that quantization changes, at a share of 4 %, 2 are expected to differ and 2 + 2 * root of 2, rounded up, may."""
    rng = np.random.default_rng(0)
    exact, here = (rng.standard_normal((20, 8)).astype(np.float32) for _ in range(2))
    here -= exact * (exact * here).sum(axis=1, keepdims=True) / (exact * exact).sum(axis=1, keepdims=True)  # at right angles
    here *= np.linalg.norm(exact, axis=1, keepdims=True) / np.linalg.norm(here, axis=1, keepdims=True)
    expected, near = exact + 0.01 * here, exact + 0.012 * here
    taught_answers, fp32 = np.zeros(20, np.int64), np.zeros(20, np.int64)
    fp32[:10] = 1
    for differ, passes in ((1, True), (5, True), (6, False)):
        found = taught_answers.copy()
        found[-differ:] = 1
        if passes:
            figures = compare(near, expected, exact, (found, taught_answers, fp32))
            assert figures["agreement"] == 1 - differ / 20
            assert figures["share"] == pytest.approx(0.04, rel=0.01)
        else:
            with pytest.raises(ExportError, match=r"6 of 20 nearest texts differ.*at most 5"):
                compare(near, expected, exact, (found, taught_answers, fp32))
    with pytest.raises(ExportError, match=r"2 of 20 nearest texts differ.*at most 1,"):  # equal embeddings explain nothing
        compare(exact, exact, exact, ((np.arange(20) < 2).astype(np.int64), taught_answers, fp32))
