"""Proof of what ran in clipq eval: a silent fallback ends the run, a note marks it, and the report shows it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from jsonschema import validate
from onnx import helper, numpy_helper
from report_example import make_example
from toy_bundle import CPU, ENGINES, make_toy_bundle, rewrite_manifest
from typing_extensions import Self

from clipq.artifact import Bundle, EngineEntry
from clipq.cli.main import main
from clipq.engines.proof import RanLayer, TowerProof
from clipq.errors import EngineError
from clipq.evaluate.proof import find_fallback, prove, summarise
from clipq.evaluate.report.html import render_html
from clipq.evaluate.report.markdown import render_markdown
from clipq.evaluate.report.ran import ran_table
from clipq.evaluate.report.write import write_report
from clipq.export.work import asked_of, work_of

STATIC = "ort-int8-static"
QUICK = ["--data", "synthetic:scenes", "--baseline", "ort-fp32", "--engines", STATIC, "--no-bench", "--limit", "20"]
INT8 = EngineEntry("onnxruntime", CPU, "int8", {"image": "i", "text": "t"}, ("image",))


def quantize_product(model: onnx.ModelProto, *, fuses: bool) -> None:
    """Put Q/DQ around the toy's product; a bias by Add makes ONNX Runtime join both into a Gemm, which it has in FP32 only."""
    graph = model.graph
    weights = numpy_helper.to_array(graph.initializer[0])
    scale = np.float32(np.abs(weights).max() / 127)
    del graph.initializer[:]
    constants = {"w": np.round(weights / scale).astype(np.int8), "ws": scale, "s": np.float32(0.03), "z": np.int8(0)}
    constants["bias"] = np.zeros(weights.shape[1], np.float32)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    graph.node.pop()
    graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["flat", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "z"], ["dw"]),
            helper.make_node("MatMul", ["d", "dw"], ["product"], name="/visual/MatMul"),
            helper.make_node("Sub" if fuses else "Add", ["product", "bias"], ["embedding"]),
        ]
    )


def make_bundle(folder: Path, *, fuses: bool) -> Bundle:
    """Write a toy bundle whose static INT8 engine really is quantized, with what its graph asks for in engine.json."""
    name = f"engines/{STATIC}/image.onnx"
    bundle = make_toy_bundle(folder, change={name: lambda model: quantize_product(model, fuses=fuses)})
    said = {"work": {"image": work_of(folder / name)}, "asked": {"image": asked_of(folder / name)}}
    (folder / f"engines/{STATIC}/engine.json").write_text(json.dumps(said))
    engines = dict(bundle.manifest.engines)
    engines[STATIC] = replace(engines[STATIC], quantized=("image",))
    return rewrite_manifest(folder, engines)


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose INT8 engine asks for INT8 and runs in FP32."""
    return make_bundle(tmp_path_factory.mktemp("fallen") / "bundle", fuses=False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose INT8 engine runs in INT8."""
    return make_bundle(tmp_path_factory.mktemp("sound") / "bundle", fuses=True)


def test_silent_fp32_ends_clipq_eval(fallen, tmp_path, capsys):
    """Exit code 1 and one line: the engine, what it runs, what it was asked for, the layer, and what to do; no report."""
    assert main(["eval", str(fallen.folder), *QUICK, "-o", str(tmp_path / "out")]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "ort-int8-static silently fell back: it does not run in INT8" in line
    assert "found 0 % of the multiply-adds in INT8; not so /visual/MatMul/MatMulAddFusion (fp32)" in line
    assert "expected 100 %, as its graph asks" in line
    assert "--allow-fallback" in line
    assert not (tmp_path / "out" / "report.json").exists()


def test_allowed_fallback_is_marked(fallen, tmp_path, capsys):
    """With --allow-fallback the run ends well, says it on stderr, and marks it in every form of the report."""
    assert main(["eval", str(fallen.folder), *QUICK, "-o", str(tmp_path), "--allow-fallback"]) == 0
    assert "silently fell back" in capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    layers = report["engines"][STATIC]["layers"]
    assert layers["fallback"] is True
    assert layers["note"] in report["verdict"][STATIC]["why"]
    assert (layers["multiply_adds"], layers["asked"]) == ({"fp32": 1.0}, {"int8": 1.0})
    validate(report, json.loads((files("clipq.evaluate.report") / "report.schema.json").read_text()))
    for name in ("report.html", "report.md"):
        page = (tmp_path / name).read_text()
        assert "silently fell back" in page
        assert "fell back" in page


def test_int8_that_runs_passes(sound, tmp_path):
    """The same engine with a bias that ONNX Runtime leaves alone is INT8, and nothing is marked."""
    assert main(["eval", str(sound.folder), *QUICK, "-o", str(tmp_path), "-q"]) == 0
    layers = json.loads((tmp_path / "report.json").read_text())["engines"][STATIC]["layers"]
    assert layers["multiply_adds"] == layers["asked"] == {"int8": 1.0}
    assert layers["each"]["image"] == [{"name": "/visual/MatMul", "kind": "product", "precision": "int8", "share": 1.0}]
    assert layers["each"]["text"] == []
    assert layers["towers"] == ["image"]
    assert not {"fallback", "note"} & set(layers)


def test_a_shared_tower_is_looked_into_once(sound, monkeypatch):
    """Three engines, one text tower: four towers are profiled, not six; and engines that are not quantized count both."""
    from clipq.engines.onnxruntime.run import OrtEngine

    looked = []
    original = OrtEngine.prove
    monkeypatch.setattr(OrtEngine, "prove", lambda self, tower: looked.append((self.id, tower)) or original(self, tower))
    found = prove(sound, list(ENGINES))
    assert len(looked) == 4
    assert found["ort-fp32"]["towers"] == ["image", "text"]


def test_engines_are_compared_by_the_same_towers(sound):
    """Where the recipe narrows the image tower alone, an FP32 engine's figures are of the image tower too."""
    manifest = replace(sound.manifest, recipe={"towers": ["image"]})
    assert prove(Bundle(sound.folder, manifest), ["ort-fp32"])["ort-fp32"]["towers"] == ["image"]


def ran(name: str, precision: str, work: int, kind: Any = "product", provider: str = CPU) -> RanLayer:
    """One layer."""
    return RanLayer(name, kind, precision, work, provider)


def summary(*layers: RanLayer, asked: dict[str, int] | None = None) -> dict[str, Any]:
    """Summarise one tower."""
    return summarise({"image": TowerProof("test", layers)}, ["image"], {"image": asked or {}})


@pytest.mark.parametrize(
    ("int8", "asked", "verdict"),
    [(96, 96, ""), (92, 96, ""), (60, 96, ""), (47, 96, "silently fell back"), (0, 0, "a graph that asks for INT8"), (0, 96, "fell back")],
)
def test_half_of_what_was_asked_for_is_the_limit(int8, asked, verdict):
    """Below half it fell back; an engine called INT8 whose graph asks for none is one too."""
    layers = summary(ran("a", "int8", int8), ran("b", "fp32", 100 - int8), asked={"int8": asked, "fp32": 100 - asked})
    problem = find_fallback(STATIC, INT8, layers)
    assert (problem is None) == (not verdict)
    assert verdict in str(problem or "")


def test_without_a_table_everything_is_taken_as_asked():
    """A bundle whose engine.json says nothing is held to half of all work."""
    assert find_fallback(STATIC, INT8, summary(ran("a", "int8", 60), ran("b", "fp32", 40))) is None
    assert find_fallback(STATIC, INT8, summary(ran("a", "int8", 40), ran("b", "fp32", 60))) is not None


def test_the_largest_layers_are_named():
    """Of many layers that fell back, the three with most of the work."""
    layers = [ran(f"layer{work}", "fp16", work) for work in (5, 50, 7, 60, 9)]
    text = str(find_fallback("trt-int8", INT8, summary(*layers, ran("q", "int8", 1), asked={"int8": 132})))
    assert "not so layer60 (fp16), layer50 (fp16), layer9 (fp16); expected" in text


def test_what_is_not_told_is_not_shown():
    """One swallowed subgraph: the work nobody else did is of unknown precision, and the reader is sent to an engine that tells."""
    layers = summary(
        ran("TRTKernel_0", "unknown", 0, provider="TensorrtExecutionProvider"), ran("c", "fp16", 4), asked={"int8": 96, "fp16": 4}
    )
    assert layers["multiply_adds"] == {"fp16": 0.04, "unknown": 0.96}
    text = str(find_fallback("ort-trt-int8", INT8, layers))
    assert "ort-trt-int8 is not shown to run in INT8" in text
    assert "Use the trt-* engine of this precision" in text


def test_nothing_known_of_the_work_is_not_shown_either():
    """Layers without multiply-adds have no shares."""
    layers = summary(ran("a", "int8", 0), ran("b", "unknown", 0))
    assert layers["multiply_adds"] == {}
    text = str(find_fallback("trt-int8", replace(INT8, runtime="tensorrt"), layers))
    assert "not shown" in text
    assert "TensorRT 10" in text


def test_engines_that_are_not_quantized_are_not_held_to_a_share():
    """FP16 that runs in FP32 costs time, not truth; its share is in the report."""
    assert find_fallback("ort-cuda-fp16", replace(INT8, precision="fp16", quantized=()), summary(ran("a", "fp32", 1))) is None


class Told:
    """A proof that was recorded elsewhere, in place of an engine that would tell it."""

    def __init__(self, *layers: RanLayer, provider: str) -> None:
        self.towers = {"image": None}
        self.provider = provider
        self.layers = layers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to release."""

    def prove(self, _tower: str) -> TowerProof:
        return TowerProof("recorded", self.layers)


def test_products_on_another_provider_are_a_fallback(sound, monkeypatch):
    """A CUDA session with a product on the CPU: an error that names it, or a mark; small nodes on the CPU are none."""
    cuda = "CUDAExecutionProvider"
    small = ran("/Gather", "unknown", 0, kind="other")
    told = Told(ran("/a/MatMul", "fp32", 9, provider=cuda), small, provider=cuda)
    monkeypatch.setattr("clipq.evaluate.proof.open_engine", lambda *_arguments: told)
    assert prove(sound, ["ort-fp32"])["ort-fp32"]["providers"] == {cuda: 1, CPU: 1}
    told.layers = (*told.layers, ran("/b/MatMul", "fp32", 1))
    with pytest.raises(EngineError, match=r"for 1 products or convolutions; found /b/MatMul on CPUExecutionProvider; expected CUDA"):
        prove(sound, ["ort-fp32"])
    assert prove(sound, ["ort-fp32"], allow_fallback=True)["ort-fp32"]["fallback"] is True


def test_a_shortfall_is_noted(sound, monkeypatch, capsys):
    """Between half and 95 % of what was asked for the run goes on, and says so."""
    told = Told(ran("a", "int8", 288), ran("b", "fp32", 96), provider=CPU)
    monkeypatch.setattr("clipq.evaluate.proof.open_engine", lambda *_arguments: told)
    layers = prove(sound, [STATIC])[STATIC]
    assert layers["note"] == "ort-int8-static: 75 % of the multiply-adds run in INT8 (25 % FP32), where its graph asks for 100 %"
    assert "fallback" not in layers
    assert layers["note"] in capsys.readouterr().err


def test_tf32_is_not_fp32(sound, monkeypatch):
    """An FP32 engine that computes in TF32 is evaluated, with a remark."""
    told = Told(ran("a", "tf32", 384), provider=CPU)
    monkeypatch.setattr("clipq.evaluate.proof.open_engine", lambda *_arguments: told)
    monkeypatch.setattr("clipq.evaluate.proof.read_asked", lambda *_arguments: {"image": {"fp32": 384}})
    note = prove(sound, ["ort-fp32"])["ort-fp32"]["note"]
    assert note == "ort-fp32: 0 % of the multiply-adds run in FP32 (100 % TF32), where its graph asks for 100 %"


def test_table_in_plain_words():
    """Asked, ran, attention, reformats and providers of every engine that was looked into; PyTorch has no row."""
    report, samples = copy.deepcopy(make_example())
    report["gates"], report["verdict"] = [], {}
    table = ran_table(report)
    assert table is not None
    assert [engine for engine, _ in table.rows] == [engine for engine in report["engines"] if not engine.startswith("torch")]
    cells = dict(table.rows)["ort-int8-static"]
    assert [cell.value for cell in cells] == ["94.0 % INT8", "94.0 % INT8", "94.0 % INT8, 6.0 % FP32", "not fused", "34", "120 on CPU"]
    assert "## What really ran" in render_markdown(report)
    assert '<h2 id="ran">What really ran</h2>' in render_html(report, samples)


def test_reports_of_the_older_form_are_still_shown():
    """Layers as precision to count: no table, no crash."""
    report, samples = copy.deepcopy(make_example())
    report["gates"], report["verdict"] = [], {}
    for entry in report["engines"].values():
        entry["layers"] = {"int8": 24, "fp32": 61}
    assert ran_table(report) is None
    assert "What really ran" not in render_markdown(report)
    assert "What really ran" not in render_html(report, samples)


def test_reports_of_the_older_form_are_still_compared(tmp_path, capsys):
    """``clipq compare`` reads them, and judges them."""
    report, samples = copy.deepcopy(make_example())
    report["gates"], report["verdict"] = [], {}
    for entry in report["engines"].values():
        entry["layers"] = {"int8": 24, "fp32": 61}
    write_report(report, samples, tmp_path)
    assert main(["compare", str(tmp_path), "--fail-on", "acc1.delta<-1"]) == 0
    assert "compared with torch-fp32" in capsys.readouterr().out


def test_domination_stands_where_peers_look_first():
    """In the headline, and as the second sentence of the engine's card; that INT8 beats FP32 is no news for the headline."""
    report, samples = copy.deepcopy(make_example())
    report["gates"] = []
    why = ["acc1: fine", "dominated by ort-fp32 here: that is as reliable within noise"]
    report["verdict"] = {"ort-int8-static": {"ship": True, "outcome": "ship", "dominated_by": "ort-fp32", "why": why}}
    page, text = render_html(report, samples), render_markdown(report)
    for rendered in (page, text):
        assert "ort-int8-static is dominated by ort-fp32 here." in rendered.split("What was compared", 1)[0]
    assert '<p class="dominated">Dominated by ort-fp32 here: that is as reliable within noise.</p>' in page
    assert "  - **dominated by ort-fp32 here: that is as reliable within noise**" in text
    report["verdict"] = {"ort-fp32": {"ship": True, "outcome": "ship", "dominated_by": "ort-int8-static", "why": why}}
    assert "is dominated by" not in render_markdown(report).split("## Verdict", 1)[0]
