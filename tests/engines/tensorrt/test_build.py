"""Plans by the real TensorRT-RTX builder, which needs no GPU; other versions' whole way on stand-ins; what is refused, and how."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tensorrt_names import Recorder, stand_in

from clipq.engines.tensorrt import build as build_module
from clipq.engines.tensorrt.adapter import Api, load_api
from clipq.engines.tensorrt.build import BuildOptions, build_plan, log_of
from clipq.engines.tensorrt.device import DeviceFacts, require_device
from clipq.engines.tensorrt.log import Log, make_logger
from clipq.engines.tensorrt.parse import GraphRefusedError
from clipq.errors import ExportError, MissingRuntimeError, UsageError
from clipq.export.pipeline import export_bundle
from clipq.files import sha256_file
from clipq.recipe import Recipe

WEIGHTS = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
INT8_ZERO = np.int8(0)
KINDS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8", "int8-fp16": "int8", "fp8-fp16": "fp8"}


@pytest.fixture(scope="module")
def _rtx() -> None:
    try:
        load_api("tensorrt-rtx")
    except MissingRuntimeError as error:
        pytest.skip(str(error))


rtx = pytest.mark.usefixtures("_rtx")


def options(folder: Path, **more: Any) -> BuildOptions:
    """Return options for the batches 1, 8 and 32."""
    return BuildOptions(batch=(1, 8, 32), timing_cache=folder / "timings", **more)


def save(folder: Path, nodes: list[Any], weights: dict[str, Any], *, opset: int = 17, **how: Any) -> Path:
    """Write a graph from ``pixels (batch, 16)`` to ``embedding (batch, 8)``."""
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [how.pop("batch", "batch"), 16])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 8])
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "toy", [pixels], [embedding], initializers)
    path = folder / "toy.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path), **how)
    return path


def save_product(folder: Path, **how: Any) -> Path:
    """Write one matrix product in FP32."""
    return save(folder, [helper.make_node("MatMul", ["pixels", "w"], ["embedding"], name="product")], {"w": WEIGHTS}, **how)


def save_qdq(folder: Path, *, zero: Any = INT8_ZERO, weight_zero: int = 0, bias: bool = False) -> Path:
    """Write one quantized matrix product; the defaults are what TensorRT takes."""
    nodes = [
        helper.make_node("QuantizeLinear", ["pixels", "s", "z"], ["q"], name="quantize_pixels"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], name="dequantize_pixels"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], name="dequantize_weights"),
        helper.make_node("MatMul", ["x", "wf"], ["y" if bias else "embedding"], name="product"),
    ]
    values = {"s": np.float32(0.1), "z": zero, "w": (WEIGHTS * 30).astype(np.int8), "ws": np.float32(0.02), "wz": np.int8(weight_zero)}
    if bias:
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bf"], name="dequantize_bias"))
        nodes.append(helper.make_node("Add", ["y", "bf"], ["embedding"], name="add"))
        values |= {"b": np.arange(8, dtype=np.int32), "bs": np.float32(0.002), "bz": np.int32(0)}
    return save(folder, nodes, values)


def leftovers(folder: Path) -> list[str]:
    """Return the files of a folder other than graphs and logs."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in {".onnx", ".log", ".data"})


@pytest.fixture(scope="session")
def demo_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with every portable graph of the embedded model, both towers."""
    return export_graphs("demo", tmp_path_factory.mktemp("demo") / "bundle", calib_n=16)


@pytest.fixture(scope="session")
def vit_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the FP32, FP16 and INT8 graphs of a random ViT-B/32, both towers."""
    return export_graphs("ViT-B-32:random", tmp_path_factory.mktemp("vit") / "bundle", calib_n=4, precisions=("fp32", "fp16", "int8"))


def export_graphs(model: str, folder: Path, calib_n: int, precisions: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")) -> Path:
    """Export the graphs that plans of these precisions are built from, and no plan."""
    engines = ("torch-fp32", *(f"trtrtx-{precision}" for precision in precisions))
    recipe = Recipe(model, engines, towers=("image", "text"), calib="synthetic:scenes", calib_n=calib_n, graphs_only=True)
    return export_bundle(recipe, folder, resume=False).folder / "towers"


@rtx
@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_graph_of_the_demo_model_builds(demo_graphs: Path, tmp_path: Path, kind: str, tower: str) -> None:
    """A real builder takes every graph that we make, in its own types, with dynamic batch, and the facts are those of the file."""
    plan = tmp_path / f"{tower}.plan"
    facts = build_plan("tensorrt-rtx", demo_graphs / f"{tower}.{kind}.onnx", plan, KINDS[kind], options(tmp_path))
    assert facts["sha256"] == sha256_file(plan)
    assert facts["size_bytes"] == plan.stat().st_size
    assert facts["warnings"] == 0
    assert facts["flags"] == []
    assert facts["strongly_typed"] is True
    assert facts["timing_cache"] is None
    assert facts["compute_capabilities"] == (["8.9", "12.0", "12.1"] if kind == "fp8-fp16" else [])
    ((name, shapes),) = facts["profile"].items()
    assert name == {"image": "pixels", "text": "tokens"}[tower]
    assert [shape[0] for shape in shapes] == [1, 8, 32]
    types = {"fp16": "HALF", "bf16": "BF16", "int8": "INT8", "fp8": "FP8"}
    assert {types[part] for part in kind.split("-") if part in types} == set(types.values()) & set(facts["types"])
    assert json.loads(json.dumps(facts)) == facts
    assert "Opset version" in (log_of(plan)).read_text()
    assert leftovers(tmp_path) == [plan.name]


@rtx
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8", "int8-fp16"])
def test_vit_b_32_builds(vit_graphs: Path, tmp_path: Path, kind: str, tower: str) -> None:
    """Both towers of a random ViT-B/32 build in FP32, FP16 and INT8."""
    plan = tmp_path / f"{tower}.plan"
    facts = build_plan("tensorrt-rtx", vit_graphs / f"{tower}.{kind}.onnx", plan, KINDS[kind], options(tmp_path))
    assert facts["sha256"] == sha256_file(plan)
    assert facts["warnings"] == 0
    plan.unlink()


@rtx
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", ["resnet", "siglip", "coca", "convnext"])
def test_every_graph_of_other_families_builds(tiny_checkpoint: Callable[[str], str], tmp_path: Path, family: str) -> None:
    """Convolutions, attention pools and sigmoid models are taken as well, both towers, every kind of graph."""
    graphs = export_graphs(tiny_checkpoint(family), tmp_path / "bundle", calib_n=8)
    for tower in ("image", "text"):
        for kind, precision in KINDS.items():
            facts = build_plan("tensorrt-rtx", graphs / f"{tower}.{kind}.onnx", tmp_path / "a.plan", precision, options(tmp_path))
            assert facts["sha256"] == sha256_file(tmp_path / "a.plan")


@rtx
def test_named_gpus_and_weights_beside_the_graph(tmp_path: Path) -> None:
    """Named compute capabilities are in the facts; weights in a file of their own are found."""
    graph = save_product(tmp_path, save_as_external_data=True, location="toy.onnx.data", size_threshold=0)
    assert (tmp_path / "toy.onnx.data").exists()
    facts = build_plan("tensorrt-rtx", graph, tmp_path / "a.plan", "fp32", options(tmp_path, compute_capabilities=("8.9", "12.0")))
    assert facts["compute_capabilities"] == ["8.9", "12.0"]
    assert facts["device"] is None or facts["device"]["sm"]


@rtx
@pytest.mark.parametrize(
    ("broken", "node"),
    [
        ({"zero": np.int8(3)}, r"quantize_pixels \(QuantizeLinear\)"),
        ({"weight_zero": 5}, r"dequantize_weights \(DequantizeLinear\)"),
        ({"zero": np.uint8(128)}, "quantize_pixels"),
        ({"zero": np.uint8(0)}, "quantize_pixels.*UINT8"),
        ({"bias": True}, r"dequantize_bias \(DequantizeLinear\).*Int32"),
    ],
    ids=["asymmetric", "asymmetric weights", "unsigned", "unsigned with a zero point of 0", "quantized bias"],
)
def test_quantization_that_tensorrt_cannot_take(tmp_path: Path, broken: dict[str, Any], node: str) -> None:
    """One line names the node, the reason and the export that makes a graph it takes; no plan is left, the log is."""
    graph = save_qdq(tmp_path, **broken)
    with pytest.raises(GraphRefusedError, match=rf"refused .*toy\.onnx; found {node}.*zero points of 0.*clipq-export MODEL") as caught:
        build_plan("tensorrt-rtx", graph, tmp_path / "a.plan", "int8", options(tmp_path))
    assert "\n" not in str(caught.value)
    assert "driver version" not in str(caught.value)
    assert leftovers(tmp_path) == []
    assert caught.value.nodes[0].name in (tmp_path / "a.build.log").read_text() or "uint8" in str(broken)


@rtx
def test_every_refused_node_is_told(tmp_path: Path) -> None:
    """The line has the first three, the error and the log have all."""
    ops = [helper.make_node(f"Foo{i}", ["pixels" if i == 0 else f"t{i - 1}"], [f"t{i}"], name=f"foo_{i}") for i in range(5)]
    graph = save(tmp_path, [*ops, helper.make_node("MatMul", ["t4", "w"], ["embedding"])], {"w": WEIGHTS})
    with pytest.raises(GraphRefusedError, match=r"foo_0.*foo_1.*foo_2.*\(and 2 more, see the build log\)") as caught:
        build_plan("tensorrt-rtx", graph, tmp_path / "a.plan", "fp32", options(tmp_path))
    assert [node.operator for node in caught.value.nodes] == [f"Foo{i}" for i in range(5)]
    assert "foo_4" in (tmp_path / "a.build.log").read_text()


@rtx
def test_operators_that_tensorrt_has_not(tmp_path: Path) -> None:
    """The builder says only "false" of dynamic quantization; the line says what that means and which export to make."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["pixels"], ["q", "s", "z"], name="dynamic"),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"], name="integer"),
        helper.make_node("Cast", ["i"], ["embedding"], to=TensorProto.FLOAT),
    ]
    graph = save(tmp_path, nodes, {"w": (WEIGHTS * 30).astype(np.int8)})
    with pytest.raises(GraphRefusedError, match=r"dynamic \(DynamicQuantizeLinear\): no such operator.*clipq-export MODEL") as caught:
        build_plan("tensorrt-rtx", graph, tmp_path / "a.plan", "int8", options(tmp_path))
    assert [node.name for node in caught.value.nodes] == ["dynamic", "integer"]


@rtx
def test_what_is_no_graph(tmp_path: Path) -> None:
    """A truncated, a random, an empty and a missing file are one line each."""
    whole = save_product(tmp_path).read_bytes()
    graph = tmp_path / "toy.onnx"
    for content in (whole[: len(whole) // 2], bytes(range(256)) * 8, b"", None):
        if content is None:
            graph.unlink()
        else:
            graph.write_bytes(content)
        with pytest.raises(ExportError, match=r"toy\.onnx") as caught:
            build_plan("tensorrt-rtx", graph, tmp_path / "a.plan", "fp32", options(tmp_path))
        assert "\n" not in str(caught.value)
        assert leftovers(tmp_path) == []


@rtx
def test_weights_that_are_gone(tmp_path: Path) -> None:
    """A graph without its data file is refused before anything is built."""
    graph = save_product(tmp_path, save_as_external_data=True, location="toy.onnx.data", size_threshold=0)
    (tmp_path / "toy.onnx.data").unlink()
    with pytest.raises(GraphRefusedError, match=r"the graph: .*toy\.onnx\.data"):
        build_plan("tensorrt-rtx", graph, tmp_path / "a.plan", "fp32", options(tmp_path))


@rtx
def test_graph_of_another_precision(tmp_path: Path) -> None:
    """An FP32 graph never becomes an "INT8" plan, nor the other way round."""
    for graph, precision in ((save_product, "int8"), (save_product, "fp16"), (save_qdq, "fp32"), (save_qdq, "fp8")):
        with pytest.raises(ExportError, match=f"is not an {precision} graph; found types"):
            build_plan("tensorrt-rtx", graph(tmp_path), tmp_path / "a.plan", precision, options(tmp_path))


@rtx
def test_shapes_that_do_not_build(tmp_path: Path) -> None:
    """A fixed batch is refused with its shape."""
    with pytest.raises(ExportError, match=r"input pixels .* wrong shape; found \[4, 16\]"):
        build_plan("tensorrt-rtx", save_product(tmp_path, batch=4), tmp_path / "a.plan", "fp32", options(tmp_path))


@rtx
def test_options_that_rtx_does_not_have(tmp_path: Path) -> None:
    """Exit code 2 for compatibility and for GPUs that it does not know, before anything is parsed."""
    for more in ({"compatibility": ("version",)}, {"compute_capabilities": ("8.7",)}):
        with pytest.raises(UsageError):
            build_plan("tensorrt-rtx", save_product(tmp_path), tmp_path / "a.plan", "fp32", options(tmp_path, **more))
    assert leftovers(tmp_path) == []


@rtx
def test_failed_build_keeps_the_old_plan(tmp_path: Path) -> None:
    """What stood there before stays whole."""
    build_plan("tensorrt-rtx", save_product(tmp_path), tmp_path / "a.plan", "fp32", options(tmp_path))
    before = sha256_file(tmp_path / "a.plan")
    with pytest.raises(GraphRefusedError):
        build_plan("tensorrt-rtx", save_qdq(tmp_path, zero=np.int8(1)), tmp_path / "a.plan", "int8", options(tmp_path))
    assert sha256_file(tmp_path / "a.plan") == before


@rtx
def test_interrupted_build(demo_graphs: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a build between two of its steps: KeyboardInterrupt, no plan, the log kept."""
    pressed = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    pressed.start()

    def build_again_and_again() -> None:
        for _ in range(100):
            build_plan("tensorrt-rtx", demo_graphs / "text.fp32.onnx", tmp_path / "a.plan", "fp32", options(tmp_path))

    with pytest.raises(KeyboardInterrupt):
        build_again_and_again()
    pressed.join()
    assert not list(tmp_path.glob(".*.part"))
    assert (tmp_path / "a.build.log").exists()


def test_tensorrt_is_not_touched_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4 from the look for a device; the library, whose objects crash there, is not even loaded."""

    def nothing() -> None:
        raise MissingRuntimeError("no NVIDIA driver")

    def never(runtime: str) -> None:
        raise AssertionError(runtime)

    monkeypatch.setattr(build_module, "require_device", nothing)
    monkeypatch.setattr(build_module, "load_api", never)
    with pytest.raises(MissingRuntimeError, match="no NVIDIA driver"):
        build_plan("tensorrt", tmp_path / "a.onnx", tmp_path / "a.plan", "fp32", options(tmp_path))


class Network:
    """What a parser makes: one input, and layers of the given kinds and types."""

    def __init__(self, version: str, layers: dict[str, str]) -> None:
        self.version, self.layers = version, layers

    def recorder(self, types: Any) -> Recorder:
        made = [
            Recorder(
                self.version,
                "ILayer",
                type=SimpleNamespace(name=kind),
                num_outputs=1,
                get_output=lambda _index, name=name: SimpleNamespace(dtype=getattr(types, name)),
            )
            for kind, name in self.layers.items()
        ]
        pixels = SimpleNamespace(name="pixels", shape=(-1, 3, 4, 4))
        return Recorder(
            self.version,
            "INetworkDefinition",
            num_layers=len(made),
            num_inputs=1,
            num_outputs=1,
            get_layer=lambda index: made[index],
            get_input=lambda _index: pixels,
        )


class Timings:
    """ITimingCache: keeps its bytes."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob or b"timings"

    def serialize(self) -> bytes:
        return self.blob


def make_tensorrt(version: str, layers: dict[str, str], *, says: tuple[str, ...] = (), plan: bytes | None = b"plan", **parser: Any) -> Api:
    """Return the adapter of a stand-in whose builder gives ``plan`` and whose parser says ``says`` (``SEVERITY text``)."""
    log = Log()
    library = stand_in(version)
    flags: set[Any] = {library.BuilderFlag.TF32}
    config = Recorder(
        version,
        "IBuilderConfig",
        set_flag=flags.add,
        clear_flag=flags.discard,
        get_flag=lambda flag: flag in flags,
        add_optimization_profile=lambda _profile: 0,
        create_timing_cache=Timings,
        set_timing_cache=lambda _cache, _ignore: True,
        get_timing_cache=lambda: Timings(b""),
    )
    builder = Recorder(
        version,
        "Builder",
        create_network=lambda _flags: Network(version, layers).recorder(library.DataType),
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: Recorder(version, "IOptimizationProfile"),
        build_serialized_network=lambda _network, _config: memoryview(plan) if plan else None,
    )

    def parse(_path: str) -> bool:
        for line in says:
            log.take(*line.split(" ", 1))
        return not parser

    library.Builder = lambda _logger: builder
    library.OnnxParser = lambda _network, _logger: Recorder(version, "OnnxParser", parse_from_file=parse, **{"num_errors": 0, **parser})
    return Api("tensorrt", library, log, make_logger(library, log))


def on_device(monkeypatch: pytest.MonkeyPatch, api: Api, sm: str = "8.7") -> None:
    """Let ``build_plan`` find a GPU and this library."""
    monkeypatch.setattr(build_module, "require_device", lambda: DeviceFacts("Orin", sm, "540.3.0", "12.2", 8 << 30))
    monkeypatch.setattr(build_module, "load_api", lambda _runtime: api)


@pytest.mark.parametrize("version", ["8.6", "10.16", "11.4"])
def test_whole_way_of_each_version(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, timing cache, device and plan of an INT8 build on names that this version has, and no others."""
    api = make_tensorrt(version, {"QUANTIZE": "INT8", "SOFTMAX": "FLOAT"}, says=("INFO Opset version:    17", "WARNING careful"))
    on_device(monkeypatch, api)
    (tmp_path / "a.onnx").write_bytes(b"graph")
    made = [
        build_plan("tensorrt", tmp_path / "a.onnx", tmp_path / "a.plan", "int8", options(tmp_path, compatibility=("version", "hardware")))
        for _ in range(2)
    ]
    facts = made[-1]
    old = ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"] if version == "8.6" else []
    assert facts["flags"] == sorted(["EXCLUDE_LEAN_RUNTIME", "VERSION_COMPATIBLE", *old])
    assert facts["strongly_typed"] is (version != "8.6")
    assert facts["device"]["sm"] == "8.7"
    assert facts["timing_cache"] == {"loaded": made[0]["timing_cache"]["kept"], "kept": made[0]["timing_cache"]["kept"]}
    assert facts["profile"] == {"pixels": [[batch, 3, 4, 4] for batch in (1, 8, 32)]}
    assert facts["warnings"] == 1
    assert (tmp_path / "a.plan").read_bytes() == b"plan"
    assert (tmp_path / "a.build.log").read_text() == "INFO: Opset version:    17\nWARNING: careful\n"


def test_8_6_refuses_newer_opsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser's own words tell the opset; the line says which graph to take."""
    on_device(monkeypatch, make_tensorrt("8.6", {"QUANTIZE": "INT8"}, says=("INFO Opset version:    19",)))
    (tmp_path / "a.onnx").write_bytes(b"graph")
    with pytest.raises(ExportError, match=r"found opset 19; expected at most 17.*int8 graph"):
        build_plan("tensorrt", tmp_path / "a.onnx", tmp_path / "a.plan", "int8", options(tmp_path))


def test_8_6_names_the_node_from_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parser's errors have no names, but it tells each node that it begins."""
    reason = 'Assertion failed: shiftIsAllZeros(zeroPoint) && "TensorRT only supports symmetric quantization. The zero point ..."'
    says = (
        "VERBOSE Parsing node: /visual/q [QuantizeLinear]",
        'ERROR While parsing node number 7 [QuantizeLinear -> "q"]:',
    )
    error = Recorder("8.6", "ParserError", desc=lambda: reason)
    on_device(monkeypatch, make_tensorrt("8.6", {"QUANTIZE": "INT8"}, says=says, num_errors=1, get_error=lambda _index: error))
    (tmp_path / "a.onnx").write_bytes(b"graph")
    with pytest.raises(GraphRefusedError, match=r"/visual/q: Assertion failed.*zero points of 0.*clipq-export MODEL"):
        build_plan("tensorrt", tmp_path / "a.onnx", tmp_path / "a.plan", "int8", options(tmp_path))


def test_failed_build_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's last error is the reason; out of memory asks for a smaller batch; nothing is left but the log."""
    (tmp_path / "a.onnx").write_bytes(b"graph")
    for text, fix in (("ERROR no kernel for node x", "See a.build.log."), ("ERROR Cuda Runtime (out of memory)", "smaller --batch")):
        on_device(monkeypatch, make_tensorrt("10.16", {"SOFTMAX": "FLOAT"}, says=(text,), plan=None))
        with pytest.raises(ExportError, match=f"could not build .*{fix}"):
            build_plan("tensorrt", tmp_path / "a.onnx", tmp_path / "a.plan", "fp32", options(tmp_path))
    assert leftovers(tmp_path) == []


def test_gpu_without_the_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FP8 on Orin is refused before the graph is looked at."""
    on_device(monkeypatch, make_tensorrt("10.16", {}))
    with pytest.raises(MissingRuntimeError, match=r"Orin has no fp8; found compute capability 8\.7"):
        build_plan("tensorrt", tmp_path / "a.onnx", tmp_path / "a.plan", "fp8", options(tmp_path))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_builds_on_the_gpu_that_is_here(demo_graphs: Path, tmp_path: Path, precision: str) -> None:
    """The installed TensorRT takes the graphs meant for it; a second build starts from the timings of the first."""
    try:
        require_device()
        api = load_api("tensorrt")
    except MissingRuntimeError as error:
        pytest.skip(str(error))
    kind = "int8-fp16" if precision == "int8" and api.strongly_typed else precision
    graph, plan = demo_graphs / f"image.{kind}.onnx", tmp_path / "a.plan"
    first, second = (build_plan("tensorrt", graph, plan, precision, options(tmp_path)) for _ in range(2))
    assert second["timing_cache"]["loaded"] == first["timing_cache"]["kept"] != ""
    assert second["device"]["sm"]
    assert second["sha256"] == sha256_file(plan)
    assert "TF32" not in second["flags"]
