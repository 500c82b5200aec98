"""Checkpoints of every family load as FP32, carry what scoring needs, and bad ones are named."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipq.engines.torch import checkpoint as module
from clipq.engines.torch.checkpoint import load_checkpoint, state_sha256
from clipq.engines.torch.compat import define_missing_operators, import_open_clip
from clipq.errors import ExportError, MissingRuntimeError, UsageError

MODELS = Path(__file__).resolve().parents[2] / ".." / "shared" / "models"


def _copy(model_id: str, folder: Path) -> Path:
    shutil.copytree(model_id.removeprefix("local-dir:"), folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "pooling", "loss", "context", "size"),
    [
        ("vit", "argmax", "softmax", 77, (32, 32)),
        ("resnet", "argmax", "softmax", 77, (64, 64)),
        ("siglip", "last", "sigmoid", 16, (160, 160)),
        ("coca", "last", "softmax", 76, (32, 32)),
        ("convnext", "argmax", "softmax", 77, (64, 64)),
    ],
)
def test_every_family_loads(
    tiny_checkpoint: Callable[[str], str], kind: str, pooling: str, loss: str, context: int, size: tuple[int, int]
) -> None:
    """Pooling rule, loss, context length and image size are the configuration's; both towers embed alike."""
    loaded = load_checkpoint(tiny_checkpoint(kind))
    assert (loaded.pooling, loaded.loss, loaded.context_length, loaded.preprocess.size) == (pooling, loss, context, size)
    assert loaded.logit_scale == pytest.approx(1 / 0.07)
    assert loaded.logit_bias == (-10.0 if loss == "sigmoid" else None)
    tokens = np.asarray(loaded.tokenizer(["a", "b c"])).astype(np.int32)
    assert loaded.embed("text", tokens).shape == (2, loaded.embed_dim)
    assert loaded.embed("image", np.zeros((2, 3, *size), np.float32)).shape == (2, loaded.embed_dim)


def test_the_model_is_fp32_frozen_and_in_eval_mode(tiny_checkpoint: Callable[[str], str]) -> None:
    """TF32 is off, and nothing learns or drops out."""
    torch.backends.cudnn.allow_tf32 = True
    loaded = load_checkpoint(tiny_checkpoint("vit"))
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    assert not loaded.model.training
    assert {(p.dtype, p.requires_grad) for p in loaded.model.parameters()} == {(torch.float32, False)}


def test_the_caption_decoder_of_coca_is_left_out(tiny_checkpoint: Callable[[str], str]) -> None:
    """It takes no part in scoring, so it takes no memory and no part in the hash."""
    loaded = load_checkpoint(tiny_checkpoint("coca"))
    assert not [name for name in loaded.model.state_dict() if "decoder" in name]


def test_embeddings_are_raw(tiny_checkpoint: Callable[[str], str]) -> None:
    """CoCa normalises by default; here no tower does."""
    loaded = load_checkpoint(tiny_checkpoint("coca"))
    norms = np.linalg.norm(loaded.embed("image", np.ones((1, 3, 32, 32), np.float32)), axis=1)
    assert abs(norms[0] - 1) > 0.01


def test_the_state_hash_sees_names_types_shapes_and_values() -> None:
    """Any of the four gives another hash; the order of the dictionary does not."""
    base = {"a": torch.zeros(4), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(4), "c": torch.ones(2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 1.0000001])},
    ]
    assert state_sha256(base) == state_sha256(dict(reversed(base.items())))
    assert len({state_sha256(state) for state in (base, *others)}) == 5


def test_random_weights_are_the_same_each_time(tiny_architecture: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A fixed seed decides them, the caller's random state is untouched, and the reader is told."""
    before = torch.get_rng_state()
    first, second = (load_checkpoint(f"{tiny_architecture}:random").state_sha256 for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.get_rng_state())
    assert "random weights" in capsys.readouterr().err


def test_weights_may_be_a_file(tiny_architecture: str, tmp_path: Path) -> None:
    """``ARCHITECTURE:FILE`` loads a safetensors file into a built-in architecture."""
    random = load_checkpoint(f"{tiny_architecture}:random")
    state = {name: tensor.clone() for name, tensor in random.model.state_dict().items()}
    state["logit_scale"] = torch.tensor(3.0)
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_checkpoint(f"{tiny_architecture}:{tmp_path}/weights.safetensors")
    assert loaded.logit_scale == pytest.approx(np.exp(3.0))
    assert loaded.state_sha256 != random.state_sha256


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("VitB32:openai", "unknown architecture 'VitB32'.*Did you mean 'ViT-B-32'"),
        ("ViT-B-32:opena", "unknown pre-trained weights of ViT-B-32 'opena'.*Did you mean 'openai'"),
        ("ViT-B-32:/no/such.safetensors", "no weights at /no/such.safetensors"),
        ("local-dir:/no/such/folder", "no open_clip model at /no/such/folder"),
    ],
)
def test_unknown_names_are_usage_errors(model_id: str, message: str) -> None:
    """The nearest name is suggested, and nothing is loaded."""
    with pytest.raises(UsageError, match=message):
        load_checkpoint(model_id)


def test_a_hub_that_cannot_be_reached_tells_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is one line that names local-dir."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match=r"cannot load hf-hub:org/name.*local-dir:PATH"):
        load_checkpoint("hf-hub:org/name")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weights_are_named(tiny_checkpoint: Callable[[str], str], tmp_path: Path, value: float) -> None:
    """NaN or infinity in one tensor stops the export with that tensor's name."""
    folder = _copy(tiny_checkpoint("vit"), tmp_path / "bad")
    state = load_file(folder / "open_clip_model.safetensors")
    state["visual.ln_post.weight"][3] = value
    save_file(state, folder / "open_clip_model.safetensors")
    with pytest.raises(ExportError, match=r"1 NaN or infinity in visual\.ln_post\.weight"):
        load_checkpoint(f"local-dir:{folder}")


def test_truncated_weights_are_named(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """Half a file is one clear line."""
    folder = _copy(tiny_checkpoint("vit"), tmp_path / "half")
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"cannot load local-dir:.*half"):
        load_checkpoint(f"local-dir:{folder}")


def test_a_folder_without_weights_is_no_random_model(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """open_clip would only warn and go on with random weights."""
    folder = _copy(tiny_checkpoint("vit"), tmp_path / "empty")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ExportError, match="could not be loaded"):
        load_checkpoint(f"local-dir:{folder}")


def test_weights_of_another_architecture_are_refused(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """A shape that does not fit is an error, never a partial load."""
    folder = _copy(tiny_checkpoint("vit"), tmp_path / "other")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 96
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="size mismatch"):
        load_checkpoint(f"local-dir:{folder}")


def test_a_text_tower_from_the_hub_is_one_clear_error(tiny_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """A Hugging Face text tower needs a library or a hub that is not here."""
    folder = _copy(tiny_checkpoint("vit"), tmp_path / "hf")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = {"hf_model_name": "no-such-org/no-such-model", "hf_tokenizer_name": "no-such-org/no-such-model"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"cannot load local-dir:.*hf"):
        load_checkpoint(f"local-dir:{folder}")


def test_openai_weights_get_the_activation_they_were_trained_with(capsys: pytest.CaptureFixture[str]) -> None:
    """``ViT-B-32:openai`` means QuickGELU, which the architecture's own configuration does not have."""
    open_clip = import_open_clip()
    assert module._weights_options(open_clip, "ViT-B-32", "openai") == {"pretrained": "openai", "force_quick_gelu": True}
    assert "trained with QuickGELU" in capsys.readouterr().err
    assert module._weights_options(open_clip, "ViT-B-32-quickgelu", "openai") == {"pretrained": "openai"}
    assert module._weights_options(open_clip, "ViT-B-32", "laion2b_e16") == {"pretrained": "laion2b_e16"}


@pytest.mark.parametrize("missing", ["torch", "open_clip"])
def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """The edge install has no torch; the line says how to get it."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else real(name, *rest))
    with pytest.raises(MissingRuntimeError, match=rf"{missing} is not installed.*clipq\[export\]"):
        import_open_clip()


def test_a_broken_library_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip that cannot be imported is a missing runtime, with its reason."""
    define_missing_operators()
    real = importlib.import_module

    def broken(name: str, *rest: object) -> object:
        if name == "open_clip":
            raise ImportError("a part is missing")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingRuntimeError, match="a part is missing"):
        import_open_clip()


@pytest.mark.shared
@pytest.mark.skipif(not MODELS.is_dir(), reason="the photograph models are not beside the project")
@pytest.mark.parametrize("name", ["photo-base", "photo-over", "photo-under"])
def test_trained_models_load(name: str) -> None:
    """FP16 files become FP32 models; a trained model tells a dog from a truck by its own words."""
    loaded = load_checkpoint(f"local-dir:{(MODELS / name).resolve()}")
    assert (loaded.embed_dim, loaded.context_length, loaded.preprocess.size) == (128, 77, (64, 64))
    assert next(loaded.model.parameters()).dtype == torch.float32
    tokens = np.asarray(loaded.tokenizer(["a photo of a dog.", "a picture of a dog.", "a photo of a truck."])).astype(np.int32)
    text = loaded.embed("text", tokens)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    assert text[0] @ text[1] > text[0] @ text[2]
