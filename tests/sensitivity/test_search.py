"""The search on real exports: a planted outlier is found and kept, the graph stays portable, and every way it can end."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from clipq.artifact import Bundle
from clipq.calib_data.index import build_index
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.sampling import read_calibration_list
from clipq.calib_data.table import open_source
from clipq.calib_data.tokenizer import Tokenizer
from clipq.errors import DataError, ExportError
from clipq.export.calibration import Calibration
from clipq.export.keep import KeepRequest, Kept
from clipq.export.pipeline import export_bundle
from clipq.export.quantize.observe import Observed, observe
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.recipe import Recipe
from clipq.sensitivity import data as data_module
from clipq.sensitivity import lab as lab_module
from clipq.sensitivity.lab import Block
from clipq.sensitivity.search import candidates, choose_kept

CALIB, OOD = "synthetic:scenes:calibration", "synthetic:scenes-near"
PLANTED = "resblocks.1:fc1"
OUTLIER = 2.0**12  # a power of two: weights are scaled exactly, so FP32 computes the same function


def _plant(folder: Path) -> None:
    """Make one channel between the second LayerNorm and fc1 of the last block enormous, and its weights as much smaller."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "open_clip_model.safetensors")
    block = "visual.transformer.resblocks.1"
    for name in (f"{block}.ln_2.weight", f"{block}.ln_2.bias"):
        state[name][5] *= OUTLIER
    state[f"{block}.mlp.c_fc.weight"][:, 5] /= OUTLIER
    save_file(state, folder / "open_clip_model.safetensors")


@pytest.fixture(scope="module", autouse=True)
def few_images() -> Iterator[None]:
    """Measure on 16 images of each kind and one template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "IMAGES", 16)
        patch.setattr(data_module, "PROMPTS", 16)
        yield


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The tiny ViT with a planted block, ranked on a few drawn scenes with every metric."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    shutil.copytree(tiny_checkpoint("vit").removeprefix("local-dir:"), folder)
    _plant(folder)
    model = f"local-dir:{folder}"
    return Recipe(model, ("ort-int8-static",), calib=CALIB, calib_ood=OOD, calib_n=24, calib_method="minmax", sensitivity=True)


@pytest.fixture(scope="module")
def ranked(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle; shared, so do not change it."""
    return _export(recipe, tmp_path_factory.mktemp("ranked") / "bundle")


@pytest.fixture(scope="module")
def ask(ranked: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Kept]:
    """Return the search without the export around it: of the planted model, from a recipe, into a folder."""
    towers = _Towers({tower: ranked.file(f"towers/{tower}.fp32.onnx") for tower in ("image", "text")})
    preprocess = Preprocess.from_file(ranked.file("preprocess.json"))
    tokenizer = Tokenizer.from_files(ranked.file("tokenizer/tokenizer.json").parent)

    def search(recipe: Recipe, folder: Path) -> Kept:
        calibration = Calibration(open_source(recipe.calib), recipe, ranked.folder, preprocess)
        observed = towers.observed(calibration, attention=recipe.mha == "int8")
        return choose_kept(KeepRequest(recipe, folder, towers.graphs, observed, calibration, preprocess, ranked.manifest.model, tokenizer))

    return search


class _Towers:
    """FP32 graphs, each observed once with the images of whoever comes first."""

    def __init__(self, graphs: dict[Any, Path]) -> None:
        self.graphs = graphs
        self._known: dict[tuple[str, bool], Observed] = {}

    def observed(self, calibration: Calibration, *, attention: bool) -> Callable[[Any], Observed]:
        def observed(tower: Any) -> Observed:
            if (tower, attention) not in self._known:
                with tempfile.TemporaryDirectory() as scratch:
                    batches = calibration.inputs(tower, calibration.index.digest)
                    self._known[tower, attention] = observe(self.graphs[tower], batches, Path(scratch), attention=attention)
            return self._known[tower, attention]

        return observed


def _export(recipe: Recipe, folder: Path, **options: Any) -> Bundle:
    return export_bundle(recipe, folder, choose_kept=choose_kept, **options)


def _facts(bundle: Bundle) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(bundle.file("sensitivity.json").read_text())
    return facts


def _int8_layers(graph: Path) -> set[str]:
    """Return the nodes that read an INT8 weight."""
    model = onnx.load(str(graph))
    weights = {tensor.name for tensor in model.graph.initializer if numpy_helper.to_array(tensor).dtype == np.int8 and tensor.dims}
    made = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in weights}
    return {node.name for node in model.graph.node if made.intersection(node.input)}


def test_the_planted_block_is_ranked_first(ranked: Bundle) -> None:
    """An outlier ruins one activation's INT8 grid: that block does by far the most damage, and the finest metric shows it."""
    facts = _facts(ranked)
    assert facts["ranked_by"] == "cosine_centred"
    first, second = facts["blocks"][:2]
    assert first["block"].endswith(PLANTED)
    assert first["damage"]["cosine_centred"] > 20 * second["damage"]["cosine_centred"]
    assert {name for entry in facts["blocks"] for name in entry["damage"]} == {
        *("cosine", "cosine_centred", "disagreement"),
        *("flips", "acc1", "ece15", "fpr95"),
    }
    assert sum(entry["multiply_adds"] for entry in facts["blocks"]) == pytest.approx(1)
    assert not any(entry["kept"] for entry in facts["blocks"])
    assert (facts["data"]["images"], facts["data"]["ood_images"]) == (16, 16)


def test_multiply_adds_are_those_of_the_layers(ranked: Bundle) -> None:
    """17 tokens of width 64: qkv, out_proj, fc1 and fc2 share as 3, 1, 4 and 4."""
    shares = {entry["block"].partition(":")[2]: entry["multiply_adds"] for entry in _facts(ranked)["blocks"]}
    assert {name: round(24 * share, 6) for name, share in shares.items()} == {"qkv": 3, "out_proj": 1, "fc1": 4, "fc2": 4}


def test_max_drop_keeps_the_planted_block(recipe: Recipe, ranked: Bundle, tmp_path: Path) -> None:
    """The bound breaks with everything quantized and holds with one block kept; the graph is whole, portable and says why."""
    before = _facts(ranked)
    whole, worst = before["steps"][0]["damage"]["cosine_centred"], before["blocks"][0]
    bound = whole / 10
    bundle = _export(replace(recipe, max_drop=(f"cosine_centred={bound}",)), tmp_path / "bundle")
    facts = _facts(bundle)
    assert [entry["block"] for entry in facts["blocks"] if entry["kept"]] == [worst["block"]]
    (said,) = facts["bounds"]
    assert said["all_quantized"]["worsening"] == pytest.approx(whole)
    assert said["result"]["worsening"] <= bound
    assert said["result"]["ci95"][0] < said["result"]["worsening"] < said["result"]["ci95"][1]
    assert said["result"]["n"] == 16
    graph = bundle.file("towers/image.int8.onnx")
    assert_qdq_portable(graph)
    every = _int8_layers(ranked.file("towers/image.int8.onnx"))
    assert _int8_layers(graph) == every - set(worst["nodes"])
    reasons = json.loads(bundle.file("engines/ort-int8-static/engine.json").read_text())
    assert f"kept for --max-drop cosine_centred={bound:g}" in json.dumps(reasons)


def test_the_same_seed_gives_the_same_file(recipe: Recipe, ranked: Bundle, ask: Callable[..., Kept], tmp_path: Path) -> None:
    """Nothing in the record depends on when or where it was made."""
    again = ask(recipe, tmp_path)
    assert json.loads(json.dumps(again.facts)) == _facts(ranked)
    assert again.nodes == {}
    assert (tmp_path / "calibration_ood.csv").read_bytes() == ranked.file("calibration_ood.csv").read_bytes()


def test_a_bound_that_holds_keeps_nothing(recipe: Recipe, ask: Callable[..., Kept], tmp_path: Path) -> None:
    """Two measurements, and no ranking that nobody asked for."""
    kept = ask(replace(recipe, sensitivity=False, max_drop=("acc1=0.9", "cosine=0.9")), tmp_path)
    assert kept.nodes == {}
    assert [step["kept"] for step in kept.facts["steps"]] == [[]]
    assert all(entry["damage"] == {} for entry in kept.facts["blocks"])


def test_a_bound_that_cannot_hold_says_what_was_reached(recipe: Recipe, tmp_path: Path) -> None:
    """Not even one INT8 block of this tower leaves the embeddings untouched: no bundle, and the best choice is named."""
    with pytest.raises(ExportError, match=r"cosine=0 cannot be held; found at best .* blocks kept, and no more than 7 can be") as raised:
        _export(replace(recipe, max_drop=("cosine=0",)), tmp_path / "bundle")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "bundle" / "manifest.json").exists()


def test_the_first_unmet_bound_chooses(recipe: Recipe, ranked: Bundle, ask: Callable[..., Kept], tmp_path: Path) -> None:
    """Each block kept was the worst left by the first metric that was not yet within its bound, and no step before the last held."""
    alone = {f"{entry['tower']} {entry['block']}": entry["damage"] for entry in _facts(ranked)["blocks"]}
    whole = _facts(ranked)["steps"][0]["damage"]
    bounds = {"cosine": whole["cosine"] / 5, "cosine_centred": whole["cosine_centred"] / 1000}
    facts = ask(replace(recipe, max_drop=tuple(f"{name}={value}" for name, value in bounds.items())), tmp_path).facts
    *before, last = facts["steps"]
    assert len(before) > 1
    assert all(last["damage"][name] <= value for name, value in bounds.items())
    for step, following in zip(before, facts["steps"][1:], strict=True):
        unmet = next(name for name, value in bounds.items() if step["damage"][name] > value)
        left = {name: damage for name, damage in alone.items() if name not in step["kept"]}
        assert following["kept"] == [*step["kept"], max(left, key=lambda name: left[name][unmet])]


def test_ood_images_of_the_search_are_refused_later(ranked: Bundle) -> None:
    """They decided what is kept, so they stand in a list of their own that the leak check reads too."""
    from clipq.evaluate.datasets import load_sets

    assert len(read_calibration_list(ranked.file("calibration_ood.csv"))) == 16
    with pytest.raises(DataError, match=f"16 of .* images of {OOD}.* were used for calibration"):
        load_sets(ranked, ["synthetic:scenes:test"], [OOD], limit=None, seed=0)


def test_an_ood_image_that_is_a_calibration_image_is_refused(recipe: Recipe, ask: Callable[..., Kept], tmp_path: Path) -> None:
    """By content: a copy of the calibration images under other names is no OOD data."""
    folder = tmp_path / "images" / "same"
    folder.mkdir(parents=True)
    for sample in open_source(CALIB).read(range(20)):
        (folder / f"{sample.id.replace('/', '_')}.ppm").write_bytes(sample.data)
    with pytest.raises(DataError, match="were used for calibration"):
        ask(replace(recipe, calib_n=4096, calib_ood=f"imagefolder:{folder.parent}"), tmp_path)


def test_the_images_measured_on_are_calibration_images(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bounded number of them, drawn first by the same seed; no others, which nobody would refuse later."""
    source = open_source(CALIB)
    for sampling in ("random", "balanced"):
        all_, few = (build_index(source, limit=limit, seed=7, sampling=sampling) for limit in (24, 16))
        assert set(few.sha256) < set(all_.sha256)
    asked: list[dict[str, Any]] = []

    def stop(_source: Any, **options: Any) -> Any:
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(data_module, "build_index", stop)
    request = SimpleNamespace(recipe=replace(recipe, seed=7, calib_sampling="balanced"), calibration=SimpleNamespace(source=source))
    with pytest.raises(KeyboardInterrupt):
        data_module.load_data(request, tmp_path)
    assert asked == [{"limit": 16, "seed": 7, "sampling": "balanced"}]


def test_a_killed_search_goes_on(recipe: Recipe, ranked: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is not measured again, the file is the same, and nothing of it is left in the bundle."""
    runs: list[Path] = []
    embed = lab_module.embed

    def counted(graph: Path, inputs: Any) -> Any:
        runs.append(graph)
        if len(runs) == 7:
            raise KeyboardInterrupt
        return embed(graph, inputs)

    monkeypatch.setattr(lab_module, "embed", counted)
    with pytest.raises(KeyboardInterrupt):
        _export(recipe, tmp_path / "bundle")
    bundle = _export(recipe, tmp_path / "bundle", resume=True)
    assert len(runs) == 7 + 5  # two FP32 towers, everything quantized, eight blocks alone: six of eleven were done
    assert bundle.file("sensitivity.json").read_bytes() == ranked.file("sensitivity.json").read_bytes()
    assert not (tmp_path / "bundle" / lab_module.PARTIAL).exists()


def test_both_towers_are_searched(recipe: Recipe, ask: Callable[..., Kept], tmp_path: Path) -> None:
    """A quantized text tower has blocks of its own and makes the class embeddings anew."""
    facts = ask(replace(recipe, towers=("image", "text")), tmp_path).facts
    assert sorted(entry["tower"] for entry in facts["blocks"]) == ["image"] * 8 + ["text"] * 8
    assert all(entry["damage"]["cosine"] > 0 for entry in facts["blocks"])
    assert facts["data"]["templates"] == 1


def test_quantized_attention_is_a_part_of_its_own(recipe: Recipe, ask: Callable[..., Kept], tmp_path: Path) -> None:
    """With ``--mha int8`` the two products of each block can be kept without its linear layers."""
    facts = ask(replace(recipe, mha="int8", calib_ood=""), tmp_path).facts
    attention = [entry for entry in facts["blocks"] if entry["block"].endswith(":attention")]
    assert [len(entry["nodes"]) for entry in attention] == [2, 2]
    assert all(entry["damage"]["cosine"] > 0 and 0 < entry["multiply_adds"] < 0.1 for entry in attention)


def test_each_tower_keeps_an_int8_block() -> None:
    """What is left may be kept until one block of a tower is: without any it would not be quantized."""
    image, text = ([Block(tower, str(number), (), 1) for number in range(3)] for tower in ("image", "text"))
    assert candidates([*image, *text], [text[0], image[1]]) == [image[0], image[2], text[1], text[2]]
    assert candidates([*image, *text], [text[0], text[2], image[1]]) == [image[0], image[2]]
    assert candidates([*image, *text], [*text[:2], *image[:2]]) == []


def test_images_without_classes_are_ranked_by_cosine(recipe: Recipe, ask: Callable[..., Kept], tmp_path: Path) -> None:
    """Only what needs no class names is measured."""
    facts = ask(replace(recipe, calib="synthetic:scenes-far"), tmp_path).facts
    assert set(facts["blocks"][0]["damage"]) == {"cosine", "cosine_centred"}
    assert facts["blocks"][0]["block"].endswith(PLANTED)
    assert facts["fp32"] == {}


def test_convolutions_can_be_kept(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """A ResNet with pooling by attention: something is kept, and the graph is portable."""
    recipe = Recipe(tiny_checkpoint("resnet"), ("ort-int8-static",), calib=CALIB, calib_n=8, max_drop=("cosine_centred=0.2",))
    bundle = _export(recipe, tmp_path / "kept")
    facts = _facts(bundle)
    assert len(facts["steps"]) > 1
    assert 0 < facts["kept_multiply_adds"] < 1
    assert sum(entry["multiply_adds"] for entry in facts["blocks"]) == pytest.approx(1)
    assert_qdq_portable(bundle.file("towers/image.int8.onnx"))


def test_the_table_is_for_readers(recipe: Recipe, ranked: Bundle, ask: Callable[..., Kept], tmp_path: Path, capsys: Any) -> None:
    """On stderr: every block with its damage and whether it is kept, then the bound with its interval."""
    bound = _facts(ranked)["steps"][0]["damage"]["cosine_centred"] / 10
    ask(replace(recipe, max_drop=(f"cosine_centred={bound}",)), tmp_path)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    header = next(line for line in lines if line.startswith("| tower"))
    assert "| multiply-adds % |" in header
    assert "| ece15 pp |" in header
    rows = [line for line in lines if line.startswith("| image")]
    assert len(rows) == 8
    assert rows[0].endswith("| yes |")
    assert PLANTED in rows[0]
    assert any(line.startswith("cosine_centred: worse by +") and "(n = 16)" in line for line in lines)
    assert any(line.startswith("Kept unquantized: image") and PLANTED in line and "16.7 %" in line for line in lines)
