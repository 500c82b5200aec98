"""Graphs with patch tokens: both outputs in every form, both behind the parity gate, and the embedding as without them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from clipq.artifact import Bundle
from clipq.cli.main import main
from clipq.engines.golden import read_golden
from clipq.engines.table import open_engine
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.engines.torch.patches import PatchTower
from clipq.errors import ExportError, UsageError
from clipq.export.golden import make_golden, write_golden
from clipq.export.onnx import export_tower
from clipq.export.parity import check_parity
from clipq.export.pipeline import export_bundle
from clipq.files import sha256_file
from clipq.recipe import Recipe

SHORT = ("ort-fp32", "ort-int8-static")
ENGINES = {"vit": (*SHORT, "ort-int8-dynamic", "ort-cuda-fp16", "trtrtx-int8", "trtrtx-fp8"), "resnet": SHORT}
FORMS = [("vit", kind) for kind in ("fp32", "int8-dynamic", "int8", "fp16", "int8-fp16", "fp8", "fp8-fp16")] + [("resnet", "int8")]
FAMILIES = {"vit": 16, "resnet": 4}


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Return a function from a family, with or without patch tokens, to its bundle; they are shared."""
    made: dict[tuple[str, bool], Bundle] = {}

    def make(family: str, *, patches: bool = True) -> Bundle:
        if (family, patches) not in made:
            made[family, patches] = export_bundle(
                Recipe(
                    model=tiny_checkpoint(family),
                    engines=ENGINES[family],
                    patch_tokens=patches,
                    calib="synthetic:scenes:calibration",
                    calib_n=16,
                    graphs_only=True,
                ),
                tmp_path_factory.mktemp(family) / "bundle",
            )
        return made[family, patches]

    return make


def _outputs(path: Path) -> list[tuple[str, int, list[Any]]]:
    outputs = onnx.load(str(path)).graph.output
    shape = lambda output: [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]  # noqa: E731
    return [(output.name, output.type.tensor_type.elem_type, shape(output)) for output in outputs]


@pytest.mark.parametrize(("family", "kind"), FORMS)
def test_every_form_has_both_outputs(exported: Callable[..., Bundle], family: str, kind: str) -> None:
    """Both float32, only the batch is free; the text tower has one as ever."""
    folder = exported(family).folder / "towers"
    single = onnx.TensorProto.FLOAT
    assert _outputs(folder / f"image.{kind}.onnx") == [
        ("embedding", single, ["batch", 24]),
        ("patches", single, ["batch", FAMILIES[family], 24]),
    ]
    assert [name for name, _, _ in _outputs(folder / "text.fp32.onnx")] == ["embedding"]


@pytest.mark.parametrize(
    ("family", "engine_id"), [("vit", "ort-fp32"), ("vit", "ort-int8-dynamic"), ("vit", "ort-int8-static"), ("resnet", "ort-int8-static")]
)
def test_the_embedding_is_that_of_a_bundle_without(exported: Callable[..., Bundle], family: str, engine_id: str) -> None:
    """What a quantized engine is measured by does not depend on the option; an engine without patch tokens has zero."""
    side = 32 if family == "vit" else 64
    pixels = np.random.default_rng(0).standard_normal((4, 3, side, side)).astype(np.float32)
    with open_engine(exported(family), engine_id, 1) as rich, open_engine(exported(family, patches=False), engine_id, 1) as plain:
        assert (rich.patches, plain.patches) == (FAMILIES[family], 0)
        embeddings, patches = rich.run_patches(pixels)
        np.testing.assert_array_equal(embeddings, rich.run("image", pixels))
        np.testing.assert_allclose(embeddings, plain.run("image", pixels), rtol=1e-5, atol=1e-6)
        assert patches.std() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runtime_gives_pytorchs_patches(exported: Callable[..., Bundle], family: str) -> None:
    """Two engines of one bundle, at batches that the graph was not traced with."""
    bundle = exported(family)
    side = 32 if family == "vit" else 64
    with open_engine(bundle, "torch-fp32", 1) as torch, open_engine(bundle, "ort-fp32", 1) as ort:
        for n in (1, 3):
            pixels = np.random.default_rng(n).standard_normal((n, 3, side, side)).astype(np.float32)
            for found, expected in zip(ort.run_patches(pixels), torch.run_patches(pixels), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_manifest_and_golden_tensors_tell_of_them(exported: Callable[..., Bundle]) -> None:
    """The grid, the parity of both outputs, the patches to check a device with; nothing of it without the option."""
    rich, plain = exported("vit"), exported("vit", patches=False)
    assert rich.manifest.recipe["patch_grid"] == [4, 4]
    assert rich.manifest.recipe["parity"]["image"]["patches"]["min_cosine"] > 0.999999
    assert "patches" not in rich.manifest.recipe["parity"]["text"]
    golden, without = read_golden(rich.file("golden.npz")), read_golden(plain.file("golden.npz"))
    assert golden.patches is not None
    assert golden.patches.shape == (8, 16, 24)
    assert without.patches is None
    assert "patch_grid" not in plain.manifest.recipe
    assert "patches" not in plain.manifest.recipe["parity"]["image"]


def test_projection_of_patches_stays_fp32(exported: Callable[..., Bundle]) -> None:
    """As that of the embedding; every other layer of the branch is INT8, and its work is counted."""
    said = json.loads(exported("vit").file("engines/ort-int8-static/engine.json").read_text())
    branch = {name for name in said["work"]["image"] if name.startswith("/patches/")}
    facts = said["graphs"]["towers/image.int8.onnx"]
    assert facts["fp32"]["/patches/MatMul"] == "final projection: makes the embedding"
    assert branch - {"/patches/MatMul"} == {name for name in facts["quantized"] if name.startswith("/patches/")}
    assert len(branch) == 5
    assert {"min_cosine", "max_abs_error"} <= set(facts["parity"]["patches"])


def test_without_the_option_the_graph_is_the_same_to_the_byte(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """Also from a model that has been asked for its patches before."""
    fresh, asked = load_checkpoint(tiny_checkpoint("vit")), load_checkpoint(tiny_checkpoint("vit"))
    PatchTower(asked.model, asked.model_id).compute(np.zeros((1, 3, 32, 32), np.float32))
    export_tower(fresh, "image", tmp_path / "a.onnx")
    export_tower(asked, "image", tmp_path / "b.onnx")
    assert sha256_file(tmp_path / "a.onnx") == sha256_file(tmp_path / "b.onnx")


def test_the_gate_holds_the_patches_too(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """A perfect embedding does not save a graph whose patches are wrong, or gone."""
    checkpoint = load_checkpoint(tiny_checkpoint("vit"))
    tower = PatchTower(checkpoint.model, checkpoint.model_id)
    golden = make_golden(checkpoint, tower)
    assert golden.patches is not None
    path = tmp_path / "image.onnx"
    export_tower(checkpoint, "image", path, tower)
    with pytest.raises(ExportError, match=r"the patch tokens of image\.onnx does not match PyTorch and was deleted"):
        check_parity(path, golden.pixels, golden.image_embedding, golden.patches[:, ::-1])
    assert not path.exists()
    export_tower(checkpoint, "image", path)
    with pytest.raises(ExportError, match=r"image\.onnx lost its patch tokens"):
        check_parity(path, golden.pixels, golden.image_embedding, golden.patches)
    assert not path.exists()


def test_golden_tensors_come_back(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """With patches and without: a file without them is that of before."""
    checkpoint = load_checkpoint(tiny_checkpoint("vit"))
    golden = make_golden(checkpoint)
    write_golden(tmp_path / "plain.npz", golden)
    with np.load(tmp_path / "plain.npz") as stored:
        assert set(stored) == {"pixels", "tokens", "image_embedding", "text_embedding"}
    rich = make_golden(checkpoint, PatchTower(checkpoint.model, "tiny"))
    write_golden(tmp_path / "rich.npz", rich)
    found = read_golden(tmp_path / "rich.npz")
    assert rich.patches is not None
    assert found.patches is not None
    np.testing.assert_array_equal(found.patches, rich.patches)


def test_a_model_without_them_is_refused_before_any_work(
    tiny_checkpoint: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, one line, and no folder."""
    command = ["export", tiny_checkpoint("coca"), "-o", str(tmp_path / "out"), "--engines", "ort-fp32", "--patch-tokens"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "has no patch tokens; found an image tower that pools by attention; expected CLIP's own ViTs" in said
    assert not (tmp_path / "out").exists()


def test_an_old_bundle_is_not_another_recipe(
    exported: Callable[..., Bundle], tiny_checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    """A manifest from before the option is the same recipe without it, and another with it."""
    recipe = Recipe(model=tiny_checkpoint("vit"), engines=("ort-fp32",))
    made = export_bundle(recipe, tmp_path / "old")
    manifest = json.loads((made.folder / "manifest.json").read_text())
    del manifest["recipe"]["patch_tokens"]
    (made.folder / "manifest.json").write_text(json.dumps(manifest))
    assert export_bundle(recipe, tmp_path / "old", resume=True).manifest.model == made.manifest.model
    with pytest.raises(UsageError, match="another recipe; found patch_tokens False; expected patch_tokens True"):
        export_bundle(Recipe(model=recipe.model, engines=("ort-fp32",), patch_tokens=True), tmp_path / "old", resume=True)
