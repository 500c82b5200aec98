"""Every spelling of a model id means one canonical id; nonsense is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipq.engines.torch.model_id import canonical_model_id, is_weights_file
from clipq.errors import UsageError


@pytest.mark.parametrize("text", ["ViT-B-32:openai", "ViT-B-32,openai", "ViT-B-32::openai", "ViT-B-32__openai", " ViT-B/32:OpenAI "])
def test_all_spellings_of_a_tag_are_one_id(text: str) -> None:
    """CLIP_benchmark's, open_clip's and OpenAI's own spellings are understood."""
    assert canonical_model_id(text) == "ViT-B-32:openai"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("demo", "demo:under"),
        ("demo:over", "demo:over"),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("local-dir:/models/a__b", "local-dir:/models/a__b"),
        ("ViT-L-14,laion2b-s32b-b82k", "ViT-L-14:laion2b_s32b_b82k"),
        ("ViT-B-32:/weights/run-1__b.safetensors", "ViT-B-32:/weights/run-1__b.safetensors"),
        ("ViT-B-32:random", "ViT-B-32:random"),
    ],
)
def test_canonical_forms(text: str, canonical: str) -> None:
    """Paths keep their case and dashes, tags do not; a canonical id is its own canonical form."""
    assert canonical_model_id(text) == canonical
    assert canonical_model_id(canonical) == canonical


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id in a manifest means the same from every folder."""
    monkeypatch.chdir(tmp_path)
    assert canonical_model_id("local-dir:model") == f"local-dir:{tmp_path / 'model'}"
    assert canonical_model_id("RN50:best.pt") == f"RN50:{tmp_path / 'best.pt'}"


@pytest.mark.parametrize("text", ["", "ViT-B-32", "ViT-B-32:", ":openai", "hf-hub:", "local-dir:"])
def test_half_an_id_is_refused(text: str) -> None:
    """The message shows what whole ids look like."""
    with pytest.raises(UsageError, match=r"incomplete model id.*ViT-B-32:openai"):
        canonical_model_id(text)


def test_an_unknown_demo_is_refused() -> None:
    """There are two embedded models."""
    with pytest.raises(UsageError, match="Did you mean 'demo:over'"):
        canonical_model_id("demo:ovr")


@pytest.mark.parametrize(("text", "expected"), [("openai", False), ("a/b", True), ("x.safetensors", True), ("laion400m_e32", False)])
def test_files_are_told_from_tags(text: str, expected: bool) -> None:
    """A slash or a known suffix makes a file."""
    assert is_weights_file(text) is expected
