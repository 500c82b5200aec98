"""The engine inspector's JSON in every shape: what is read from it, and what is left unknown rather than guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipq.engines.proof import TowerProof
from clipq.engines.tensorrt.inspector import read_inspector
from clipq.errors import EngineError

RECORDED = Path(__file__).parent / "recorded"  # each names its source
BERT = "/encoder/layers.2/mha"
BERT_WORK = {
    f"{BERT}/attn/mha_prob/query/MatMul": 100,
    f"{BERT}/attn/mha_prob/key/MatMul": 100,
    f"{BERT}/attn/value/MatMul": 100,
    f"{BERT}/attn/mha_prob/MatMul": 7,
    f"{BERT}/attn/MatMul": 8,
    f"{BERT}/output/dense/MatMul": 90,
}
ROW = "Row major linear"


def read(name: str, work: dict[str, int]) -> TowerProof:
    """Read one recorded file."""
    return read_inspector((RECORDED / name).read_text(), "x", work)


def of_layers(*layers: object, work: dict[str, int] | None = None) -> TowerProof:
    """Read an engine with these layers."""
    return read_inspector(json.dumps({"Layers": layers, "Bindings": []}), "10.16", work or {})


def layer(name: str, layer_type: str, dtype: str = "", *, tactic: str = "", metadata: str = "") -> dict[str, object]:
    """One layer as TensorRT 10 lists it."""
    inputs = [{"Name": "x", "Dimensions": [1, 8], "Format/Datatype": dtype}] if dtype else []
    return {"Name": name, "LayerType": layer_type, "Inputs": inputs, "Outputs": [], "TacticName": tactic, "Metadata": metadata}


def test_fused_attention_of_myelin():
    """A transformer block in FP16: work by metadata, attention fused, though "mha" is in the names of plain products too."""
    proof = read("bert_fp16_tensorrt10.json", BERT_WORK)
    assert [(ran.kind, ran.precision, ran.multiply_adds) for ran in proof.layers] == [
        ("product", "fp16", 300),
        ("attention", "fp16", 15),
        ("product", "fp16", 90),
        ("normalisation", "fp16", 0),
    ]
    assert proof.attention == "fused"
    assert proof.source == "tensorrt x inspector"


def test_names_of_myelin_without_metadata():
    """Kernels of Myelin have underscores for the dots of a node's name, and several nodes in one name."""
    value = json.loads((RECORDED / "bert_fp16_tensorrt10.json").read_text())
    for one in value["Layers"]:
        one["Metadata"] = ""
    proof = read_inspector(json.dumps(value), "10.8", BERT_WORK)
    assert [ran.multiply_adds for ran in proof.layers[:4]] == [300, 0, 90, 0]
    assert (proof.layers[-1].precision, proof.layers[-1].multiply_adds) == ("unknown", 15)


def test_int8_convolution_of_tensorrt_8():
    """A convolution with vectorised INT8 formats, and the copy in front of it."""
    proof = read("convolution_int8_tensorrt8.json", {"node_of_gpu_0/res4_0_branch2a_1": 1000})
    assert [(ran.kind, ran.multiply_adds) for ran in proof.layers] == [("reformat", 0), ("convolution", 1000)]
    assert proof.layers[1].precision == "int8"
    assert proof.attention == "none"


def test_tensorrt_11():
    """Type and format are two keys; the kernel that only moves a product's input does not take its work."""
    work = {"/conv1/Conv": 5, "/blocks.0/mlp/c_fc/MatMul": 50}
    proof = read("tensorrt11.json", work)
    assert [(ran.kind, ran.precision, ran.multiply_adds) for ran in proof.layers] == [
        ("reformat", "fp16", 0),
        ("product", "int8", 50),
        ("convolution", "bf16", 5),
    ]


def test_names_only():
    """Without detailed verbosity the work is known and its precision is not; a copy to a layer is not the layer."""
    conv = "/model/backbone/conv1/conv1_{}/conv/Conv"
    proof = read("names_only_tensorrt10.json", {conv.format(1): 3, conv.format(2): 4})
    assert [(ran.kind, ran.precision, ran.multiply_adds) for ran in proof.layers] == [
        ("reformat", "unknown", 0),
        ("convolution", "unknown", 3),
        ("convolution", "unknown", 4),
        ("other", "unknown", 0),
    ]


def test_a_copy_whose_last_part_is_a_node_is_still_a_copy():
    """The name of a copy to "w + /a/MatMul" ends like the product it feeds."""
    proof = of_layers("Reformatting CopyNode for Input Tensor 0 to w + /a/MatMul", "w + /a/MatMul", work={"/a/MatMul": 9})
    assert [(ran.kind, ran.multiply_adds) for ran in proof.layers] == [("reformat", 0), ("product", 9)]


def test_foreign_node_hides_everything():
    """TensorRT 8.6 may put a whole transformer into one layer: all its work is of unknown precision, and so is attention."""
    work = {"/a/MatMul": 2, "/b/MatMul": 3}
    proof = of_layers(layer("{ForeignNode[/a/MatMul.../b/Add]}", "Myelin", f"{ROW} FP32"), work=work)
    hidden = proof.layers[-1]
    assert (hidden.kind, hidden.precision, hidden.multiply_adds) == ("product", "unknown", 5)
    assert hidden.name == "2 nodes that no layer names, from /a/MatMul"
    assert proof.attention == "unknown"


@pytest.mark.parametrize(
    ("dtype", "tactic", "precision"),
    [
        (f"{ROW} FP32", "", "fp32"),
        ("Channel major FP16 format where channel % 4 == 0", "", "fp16"),
        ("Half", "", "fp16"),
        ("BFloat16", "", "bf16"),
        ("FP8", "", "fp8"),
        ("Four wide channel vectorized row major Int8 format", "", "int8"),
        ("N/A due to dynamic shapes", "", "unknown"),
        ("N/A due to dynamic shapes", "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize32x32x64_stage1", "int8"),
        ("Float", "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize32x32x64_stage1", "tf32"),
        ("Float", "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x64_stage1", "fp32"),
        ("Half", "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64_stage6", "fp16"),
        ("FP8", "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128", "fp8"),
        ("Half", "sm50_xmma_cublas_gemvx_f16f16_f32_f32", "fp16"),
    ],
)
def test_precision(dtype, tactic, precision):
    """The tactic says what is computed with (TF32 is not FP32); without one, the first input does; dynamic shapes tell nothing."""
    assert of_layers(layer("/a/MatMul", "gemm", dtype, tactic=tactic)).layers[0].precision == precision


def test_weights_tell_where_shapes_are_dynamic():
    """Without input formats the type of the weights is the best there is."""
    value = {**layer("/a/Conv", "CaskConvolution", "N/A due to dynamic shapes"), "Weights": {"Type": "Int8", "Count": 9}}
    assert of_layers(value).layers[0].precision == "int8"


@pytest.mark.parametrize(
    ("name", "layer_type", "kind"),
    [
        ("__myl_TranReshMove_myl3_3", "kgen", "reformat"),
        ("__myl_bb1_2_TraSliSliResTraResMovSli", "kgen", "reformat"),
        ("__myl_ReplMulAdd_myl0_1", "kgen", "other"),
        ("/s/Softmax", "CaskSoftMaxV2", "softmax"),
        ("__mye8037_gemm_mha_v2", "kgen", "attention"),
        ("fmha_v2_flash_attention_fp16_sm80", "kgen", "attention"),
        ("/a/Conv || /b/Conv", "CaskGemmConvolution", "convolution"),
        ("/a/MatMul", "MatrixMultiply", "product"),
        ("PWN(/a/Mul)", "PointWiseV2", "other"),
        ("__mye6916", "wait", "other"),
    ],
)
def test_kinds(name, layer_type, kind):
    """What a layer does, by its type and name."""
    assert of_layers(layer(name, layer_type, "Half")).layers[0].kind == kind


def test_side_by_side_products_are_both_counted():
    """TensorRT joins products that read one tensor: "A || B" does the work of both."""
    assert of_layers(layer("/q/MatMul || /k/MatMul", "gemm", "Half"), work={"/q/MatMul": 4, "/k/MatMul": 5}).layers[0].multiply_adds == 9


def test_partly_fused_attention():
    """One block fused, another not: neither word alone would be true."""
    single = layer("__myl_MaxSubExp", "kgen", "Half", metadata="[ONNX Layer: /b/Softmax]")
    assert of_layers(layer("_gemm_mha_v2_myl0_1", "kgen", "Half"), single).attention == "partly fused"
    assert of_layers(layer("/a/MatMul", "gemm", "Half"), single).attention == "not fused"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"Layers": [3]}', '{"Layers": 1}', "Layer(0): conv1"])
def test_unreadable(text):
    """What is not the inspector's JSON is an error with the version in it."""
    with pytest.raises(EngineError, match=r"cannot read what TensorRT 10.3 tells"):
        read_inspector(text, "10.3", {})


def test_no_layers():
    """Verbosity NONE lists nothing: an error, because nothing would be proven."""
    with pytest.raises(EngineError, match="detailed profiling verbosity"):
        read_inspector('{"Layers": [], "Bindings": []}', "8.6.0", {})
