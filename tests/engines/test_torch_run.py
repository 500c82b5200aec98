"""The FP32 PyTorch engine runs the checkpoint that the manifest names, and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipq.artifact import Bundle, EngineEntry, Manifest, ModelEntry, describe_file, write_manifest
from clipq.engines.table import open_engine
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.engines.torch.run import TorchEngine
from clipq.errors import EngineError, RefusedError
from clipq.files import write_json


@pytest.fixture
def bundle(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> Bundle:
    """A bundle with nothing but the engine that loads the checkpoint."""
    loaded = load_checkpoint(tiny_checkpoint("vit"))
    write_json(tmp_path / "preprocess.json", loaded.preprocess.to_json())
    model = ModelEntry(loaded.model_id, loaded.state_sha256, loaded.embed_dim, loaded.logit_scale, None, loaded.context_length)
    files = {"preprocess.json": describe_file(tmp_path, "preprocess.json")}
    write_manifest(tmp_path, Manifest(model, files, {"torch-fp32": EngineEntry("torch", "cpu", "fp32")}, {}, "", {}, {}))
    return Bundle.open(tmp_path)


def test_it_gives_the_models_own_embeddings(bundle: Bundle) -> None:
    """Both towers, raw, bit for bit what open_clip computes."""
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3, 3, 32, 32)).astype(np.float32)
    loaded = load_checkpoint(bundle.manifest.model.id)
    tokens = np.asarray(loaded.tokenizer(["a cat", "a dog", ""])).astype(np.int32)
    with open_engine(bundle, "torch-fp32", threads=1) as engine, torch.no_grad():
        assert isinstance(engine, TorchEngine)
        assert engine.provider == "cpu"
        np.testing.assert_allclose(engine.run("image", pixels), loaded.model.encode_image(torch.from_numpy(pixels)), atol=1e-6)
        np.testing.assert_allclose(engine.run("text", tokens), loaded.model.encode_text(torch.from_numpy(tokens).long()), atol=1e-6)


def test_other_weights_are_refused(bundle: Bundle) -> None:
    """The same id with another state hash is another model."""
    manifest = replace(bundle.manifest, model=replace(bundle.manifest.model, state_sha256="f" * 64))
    write_manifest(bundle.folder, manifest)
    engine = open_engine(Bundle.open(bundle.folder), "torch-fp32")
    with pytest.raises(RefusedError, match="is not the model this bundle was made from"):
        engine.__enter__()


def test_threads_are_set_and_given_back(bundle: Bundle) -> None:
    """The rest of the process keeps its own number."""
    before = torch.get_num_threads()
    with TorchEngine.from_bundle(bundle, "torch-fp32", before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_it_must_be_opened(bundle: Bundle) -> None:
    """Running before the with block is one clear line."""
    engine = TorchEngine.from_bundle(bundle, "torch-fp32", None)
    with pytest.raises(EngineError, match="is not open"):
        engine.run("image", np.zeros((1, 3, 32, 32), np.float32))


def test_a_changed_preprocessing_is_refused(bundle: Bundle) -> None:
    """The image size comes from a file the manifest vouches for."""
    (bundle.folder / "preprocess.json").write_text("{}")
    with pytest.raises(RefusedError, match="is not the file the manifest names"):
        TorchEngine.from_bundle(bundle, "torch-fp32", None)
