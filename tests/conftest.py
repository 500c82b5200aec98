"""Fixtures that several rooms share: tiny open_clip models of every family, made once per test run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("any-machine", deadline=None)  # how long an example takes on a busy machine is no property
settings.load_profile("any-machine")

collect_ignore = ["image"]  # scripts that run in the container or judge it, not tests

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
_VIT = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2}
_CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "resnet": {"embed_dim": 24, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}, "text_cfg": _TEXT},
    "siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            **_TEXT,
            "context_length": 16,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
    },
    "coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {**_VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": {**_TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**_TEXT, "context_length": 76, "attn_pooler_heads": 2},
    },
    "convnext": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": _TEXT,
    },
}
_PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "shortest"}


def write_checkpoint(folder: Path, kind: str, *, seed: int = 0) -> str:
    """Write a random model of a family (``vit``, ``resnet``, ``siglip``, ``coca``, ``convnext``) and return its model id."""
    from clipq.engines.torch.compat import import_open_clip

    open_clip = import_open_clip()
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = _CONFIGS[kind]
    size = config["vision_cfg"]["image_size"]
    text = json.dumps({"model_cfg": config, "preprocess_cfg": {**_PREPROCESS, "size": [size, size]}})
    (folder / "open_clip_config.json").write_text(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    state = {
        name: torch.nan_to_num(tensor).contiguous() for name, tensor in model.state_dict().items()
    }  # CoCa's decoder is not initialised
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder.resolve()}"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function from a family to the id of its tiny random model; the files are shared, so do not change them."""
    made: dict[str, str] = {}

    def make(kind: str = "vit") -> str:
        if kind not in made:
            made[kind] = write_checkpoint(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return make


@pytest.fixture
def tiny_architecture(tmp_path: Path) -> Iterator[str]:
    """Teach open_clip a tiny architecture by name and return the name, for ids such as ``NAME:random``."""
    from clipq.engines.torch.compat import import_open_clip

    factory = import_open_clip().factory
    paths, known = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    (tmp_path / "tiny-vit.json").write_text(json.dumps(_CONFIGS["vit"]))
    factory.add_model_config(tmp_path / "tiny-vit.json")
    yield "tiny-vit"
    factory._MODEL_CONFIG_PATHS[:] = paths
    factory._MODEL_CONFIGS = known


@pytest.fixture(autouse=True)
def _told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every test with notes on, whatever ``--quiet`` an earlier one ran with."""
    monkeypatch.setattr("clipq.progress._quiet", False)
