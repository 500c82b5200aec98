"""Where weights came from, told without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipq.engines.torch.origin import model_origin


@pytest.mark.parametrize(
    ("model_id", "source"),
    [
        ("demo:under", "embedded"),
        ("local-dir:/models/x", "local"),
        ("ViT-B-32:random", "random"),
        ("ViT-B-32:/runs/best.safetensors", "local"),
        ("ViT-B-32:laion2b_s34b_b79k", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("hf-hub:org/name", "hf-hub:org/name"),
    ],
)
def test_source_of_a_model(model_id: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id; without the hub's cache the revision is not known."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_origin(model_id) == {"source": source}


def test_revision_is_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit that the hub's cache last resolved ``main`` to."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("1a25a446712ba5ee05982a381eed697ef9b435cf")
    expected = {"source": "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "revision": "1a25a446712ba5ee05982a381eed697ef9b435cf"}
    assert model_origin("ViT-B-32:laion2b_s34b_b79k") == expected
