"""Weights alone in 8 or 4 bits: blocks by hand and against slow loops, the graph, and what ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from toy_towers import centred_cosine, embed, inputs_of, kernels_that_ran

from clipq.errors import ExportError
from clipq.export.quantize.hqq import BETA, KAPPA, NORM, Blocks, round_blocks, shrink
from clipq.export.quantize.weight_only import BLOCK, write_weight_only
from clipq.export.work import asked_of
from clipq.methods import BITS

Array = np.ndarray


def _values(made: Blocks, size: int) -> Array:
    """The weight that blocks stand for."""
    rows = np.arange(len(made.integers)) // size
    return ((made.integers.astype(np.float32) - made.zeros[rows]) * made.scales[rows]).astype(np.float32)


def _weight(seed: int, inputs: int = 64, outputs: int = 6) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.laplace(size=(inputs, outputs)) + rng.normal(0, 0.3, outputs)).astype(np.float32)


def test_nearest_by_hand() -> None:
    """From -1 to 2 in 15 steps of 0.2: zero is the integer 5, and every value the nearest step."""
    made = round_blocks(np.float32([[-1.0], [2.0], [0.31], [0.0]]), 4, 4, optimised=False)
    assert made.zeros.tolist() == [[5]]
    assert made.scales[0, 0] == pytest.approx(0.2)
    assert made.integers[:, 0].tolist() == [0, 15, 7, 5]


@pytest.mark.parametrize("bits", [8, 4])
def test_nearest_matches_a_slow_loop(bits: int) -> None:
    """Block after block, output after output, with a shorter last block."""
    weight, largest = _weight(0, 40), 2**bits - 1
    made = round_blocks(weight, bits, 16, optimised=False)
    assert made.scales.shape == made.zeros.shape == (3, 6)
    for block, start in enumerate(range(0, 40, 16)):
        for output in range(6):
            part = weight[start : start + 16, output]
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            scale = np.float32((high - low) / largest)
            zero = min(max(round(-low / scale), 0), largest)
            assert made.scales[block, output] == pytest.approx(scale, rel=1e-6)
            assert made.zeros[block, output] == zero
            expected = [min(max(np.rint(value / scale + zero), 0), largest) for value in part]
            assert np.abs(made.integers[start : start + 16, output] - expected).max() <= 1e-6


def _slow_hqq(part: Array, largest: int) -> tuple[float, float]:
    """One block, one value at a time: HQQ's two steps with the scale fitted and the zero point rounded; the best loss counts."""
    low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
    scale = (high - low) / largest
    zero = float(round(-low / scale))
    best, chosen, beta = np.inf, (scale, zero), BETA
    for _ in range(20):
        integers = [min(max(np.rint(w / scale + zero), 0), largest) for w in part]
        errors = [w - (q - zero) * scale for w, q in zip(part, integers, strict=True)]
        loss = sum(abs(e) ** NORM for e in errors)
        if loss < best:
            best, chosen = loss, (scale, zero)
        sparse = [np.sign(e) * max(abs(e) - abs(e) ** (NORM - 1) / beta, 0) if e else 0.0 for e in errors]
        aim = [w - e for w, e in zip(part, sparse, strict=True)]
        energy = sum((q - zero) ** 2 for q in integers)
        fitted = sum((q - zero) * a for q, a in zip(integers, aim, strict=True)) / max(energy, 1)
        scale = fitted if fitted > 0 else scale
        zero = min(max(float(np.rint(np.mean([q - a / scale for q, a in zip(integers, aim, strict=True)]))), 0), largest)
        beta *= KAPPA
    return chosen


def test_hqq_matches_a_slow_loop() -> None:
    """Scale and zero point of each block are those of explicit loops."""
    weight = _weight(1, 64, 4)
    made = round_blocks(weight, 4, 32, optimised=True)
    for block in range(2):
        for output in range(4):
            scale, zero = _slow_hqq(weight[32 * block : 32 * block + 32, output].astype(np.float64), 15)
            assert made.scales[block, output] == pytest.approx(scale, rel=1e-3)
            assert made.zeros[block, output] == zero


def test_shrink_by_hand() -> None:
    """At size 1 the threshold is 1/beta; small errors vanish; signs stay."""
    np.testing.assert_allclose(shrink(np.float32([1, -1, 0.01, 0]), 10), [0.9, -0.9, 0, 0], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([8, 4]), inputs=st.integers(1, 70))
def test_hqq_never_loses_to_the_nearest_by_its_own_norm(seed: int, bits: int, inputs: int) -> None:
    """The sum of errors to the power 0.7 is at most that of the range of each block; everything stays in the grid."""
    weight = _weight(seed, inputs, 3)
    errors = []
    for optimised in (True, False):
        made = round_blocks(weight, bits, 32, optimised=optimised)
        assert made.integers.max() < 2**bits
        assert made.zeros.max() < 2**bits
        errors.append((np.abs(_values(made, 32) - weight) ** NORM).sum())
    assert errors[0] <= errors[1] * (1 + 1e-4)


@pytest.mark.parametrize("optimised", [False, True])
def test_eight_bits_are_nearer_than_four_and_zeros_stay(optimised: bool) -> None:
    """W8 errs less than W4; a block of zeros stays zero with a usable scale."""
    weight = _weight(2)
    weight[:32, 0] = 0
    errors = []
    for bits in (8, 4):
        made = round_blocks(weight, bits, 32, optimised=optimised)
        assert not _values(made, 32)[:32, 0].any()
        assert np.all(np.isfinite(made.scales) & (made.scales > 0))
        errors.append(np.abs(_values(made, 32) - weight).mean())
    assert errors[0] < 0.15 * errors[1]


@pytest.mark.parametrize("bits", ["W8A32", "W4A32"])
@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_towers_run_with_packed_weights(towers: Callable[[str, str], Path], tower: str, method: str, bits: str, tmp_path: Path) -> None:
    """Every linear layer runs as one MatMulNBits at one sample and at several, the file is smaller, the embeddings stay."""
    source, target = towers("vit", tower), tmp_path / "g.onnx"
    facts = write_weight_only(source, target, method, BITS[bits])
    inputs = inputs_of(source, 8)
    for n in (1, 8):
        assert kernels_that_ran(target, inputs[:n])["MatMulNBits"] == len(facts["quantized"]) == 8
    assert centred_cosine(embed(source, inputs), embed(target, inputs)) > (0.999 if bits == "W8A32" else 0.9)
    assert facts["target_bytes"] < facts["source_bytes"]
    assert asked_of(target)[f"int{BITS[bits].weights}-weights"] > asked_of(target)["fp32"] * 0.5
    onnx.checker.check_model(str(target), full_check=True)


def test_the_kernel_computes_what_the_blocks_say(tmp_path: Path) -> None:
    """What ONNX Runtime computes is the product with the dequantized weight, with a last block that is not full."""
    rng = np.random.default_rng(0)
    for inputs in (64, 40):
        weight = rng.standard_normal((inputs, 8)).astype(np.float32)
        nodes = [
            helper.make_node("Add", ["x", "x"], ["x2"]),
            helper.make_node("MatMul", ["x2", "w"], ["m"], name="product"),
            helper.make_node("Relu", ["m"], ["y"]),
        ]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", inputs), ("y", 8))]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, str(tmp_path / "source.onnx"))
        x = rng.standard_normal((5, inputs)).astype(np.float32)
        for bits in (8, 4):
            write_weight_only(tmp_path / "source.onnx", tmp_path / "g.onnx", "rtn", BITS[f"W{bits}A32"])
            exact = _values(round_blocks(weight, bits, BLOCK, optimised=False), BLOCK)
            np.testing.assert_allclose(embed(tmp_path / "g.onnx", x), np.maximum(2 * x @ exact, 0), rtol=1e-4, atol=1e-4)


def test_convolutions_and_the_embedding_of_tokens_stay(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """A ResNet's convolutions stay FP32 with their reason; so does whatever is no linear layer."""
    facts = write_weight_only(towers("resnet", "image"), tmp_path / "g.onnx", "rtn", BITS["W4A32"])
    assert any(reason.startswith("convolution") for reason in facts["fp32"].values())
    assert set(facts["counts"]["int4-weights"]) == {"MatMul"}


def test_a_tower_without_linear_layers_is_refused(tmp_path: Path) -> None:
    """Nothing to quantize is an error of one line, and nothing is written."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "source.onnx"))
    with pytest.raises(ExportError, match="nothing to quantize") as caught:
        write_weight_only(tmp_path / "source.onnx", tmp_path / "g.onnx", "hqq", BITS["W4A32"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "g.onnx").exists()
