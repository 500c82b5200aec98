"""Loads any open_clip model as FP32 PyTorch."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy.typing as npt

from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Float32, Tower
from clipq.engines.torch.compat import import_open_clip
from clipq.engines.torch.model_id import is_weights_file
from clipq.errors import ClipqError, ExportError, UsageError, unknown_name
from clipq.progress import note

RANDOM = "random"
_DEMO_FOLDER = Path(__file__).with_name("demo")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open_clip model in FP32 on the CPU, in eval mode, without gradients, and what scoring must know of it.

    Attributes:
        model_id: Canonical model id.
        model: The ``torch.nn.Module`` with ``encode_image`` and ``encode_text``.
        preprocess: How images become pixels.
        tokenizer: open_clip's tokenizer: texts to int64 ``(n, context_length)``.
        embed_dim: Length of one embedding.
        logit_scale: ``exp`` of the learned parameter.
        logit_bias: SigLIP's bias, or None.
        context_length: Tokens per text.
        pooling: How the text tower picks its feature: ``argmax``, ``eos``, ``last``, ``first``, ``none``, or the name of a pooler.
        loss: ``sigmoid`` for models with a logit bias, else ``softmax``.
        state_sha256: Hash over the names, dtypes, shapes and bytes of all tensors.
        quick_gelu: Whether the activation is ``x * sigmoid(1.702 x)``.
    """

    model_id: str
    model: Any
    preprocess: Preprocess
    tokenizer: Callable[[list[str]], Any]
    embed_dim: int
    logit_scale: float
    logit_bias: float | None
    context_length: int
    pooling: str
    loss: Literal["softmax", "sigmoid"]
    state_sha256: str
    quick_gelu: bool

    def embed(self, tower: Tower, batch: npt.NDArray[Any]) -> Float32:
        """Return the raw (not normalised) embeddings of a batch, float32 ``(n, embed_dim)``, computed with TF32 and autocast off.

        Args:
            tower: ``image`` or ``text``.
            batch: Pixels, float32 ``(n, 3, h, w)``, or token ids, int32 ``(n, context_length)``.
        """
        import torch

        encode = self.model.encode_image if tower == "image" else self.model.encode_text
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            output: Float32 = encode(torch.from_numpy(batch), normalize=False).numpy()
        return output

    def transform(self) -> Callable[[Any], Float32]:
        """Return open_clip's own evaluation transform: decoded PIL image to pixels, float32 ``(3, h, w)``, by torchvision."""
        transform = import_open_clip().transform
        apply = transform.image_transform_v2(transform.PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False)

        def pixels(image: Any) -> Float32:
            values: Float32 = apply(image).numpy()
            return values

        return pixels


def load_checkpoint(model_id: str) -> Checkpoint:
    """Load a model by its canonical id.

    Raises:
        UsageError: The architecture or the pre-trained tag is unknown, or there is no such folder or file.
        ExportError: The weights cannot be read, do not fit the architecture, or hold NaN or infinity.
        MissingRuntimeError: open_clip is not installed.
    """
    open_clip = import_open_clip()
    name, options = _how_to_load(open_clip, model_id)
    _full_fp32()
    with _quiet_logging():
        model = _library_call(model_id, lambda: _create(open_clip, name, options))
        tokenizer = _library_call(model_id, lambda: open_clip.get_tokenizer(name))
    _refuse_non_finite(model, model_id)
    config = open_clip.get_model_config(name)
    bias = getattr(model, "logit_bias", None)
    return Checkpoint(
        model_id=model_id,
        model=model,
        preprocess=_preprocess(model.visual.preprocess_cfg),
        tokenizer=tokenizer,
        embed_dim=int(config["embed_dim"]),
        logit_scale=float(model.logit_scale.exp()),
        logit_bias=None if bias is None else float(bias),
        context_length=int(tokenizer.context_length),
        pooling=_pooling(config["text_cfg"]),
        loss="softmax" if bias is None else "sigmoid",
        state_sha256=state_sha256(model.state_dict()),
        quick_gelu=bool(config.get("quick_gelu", False) or options.get("force_quick_gelu", False)),
    )


def state_sha256(state: Mapping[str, Any]) -> str:
    """Return the hash over a state dict's sorted names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _how_to_load(open_clip: ModuleType, model_id: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options for ``open_clip.create_model``, every name checked."""
    kind, _, rest = model_id.partition(":")
    if kind == "demo":
        return _local_dir(_DEMO_FOLDER / rest), {}
    if kind == "local-dir":
        return _local_dir(Path(rest)), {}
    if kind == "hf-hub":
        return model_id, {}
    if kind not in open_clip.list_models():
        raise unknown_name("architecture", kind, difflib.get_close_matches(kind, open_clip.list_models(), n=5, cutoff=0))
    return kind, _weights_options(open_clip, kind, rest)


def _local_dir(folder: Path) -> str:
    if not (folder / "open_clip_config.json").is_file():
        raise UsageError(f"no open_clip model at {folder}", expected="a folder with open_clip_config.json and weights")
    return f"local-dir:{folder}"


def _weights_options(open_clip: ModuleType, architecture: str, weights: str) -> dict[str, Any]:
    if weights == RANDOM:
        note(f"{architecture}:{RANDOM} has random weights: good for measuring speed, useless for anything else")
        return {"pretrained": None}
    if is_weights_file(weights):
        if not Path(weights).is_file():
            raise UsageError(f"no weights at {weights}", expected="a .safetensors, .bin or .pt file")
        return {"pretrained": weights}
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights not in tags:
        raise unknown_name(f"pre-trained weights of {architecture}", weights, [*tags, RANDOM])
    return {"pretrained": weights, **_activation_of(open_clip, architecture, weights)}


def _activation_of(open_clip: ModuleType, architecture: str, tag: str) -> dict[str, Any]:
    """Return the option that gives the model the activation its weights were trained with (QuickGELU for OpenAI's, among others)."""
    trained_with_quick = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
    if not trained_with_quick or open_clip.get_model_config(architecture).get("quick_gelu", False):
        return {}
    note(f"{architecture}:{tag} was trained with QuickGELU: using it, as {architecture}-quickgelu:{tag} would")
    return {"force_quick_gelu": True}


def _create(open_clip: ModuleType, name: str, options: Mapping[str, Any]) -> Any:
    import torch

    random = options.get("pretrained", "") is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # decides the tensors of a random model only
        model = open_clip.create_model(name, precision="fp32", require_pretrained=not random, pretrained_text=False, **options)
    if hasattr(model, "text_decoder"):
        del model.text_decoder  # CoCa writes captions with it; it takes no part in scoring
    return model.eval().requires_grad_(requires_grad=False)


def _library_call(model_id: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ClipqError:
        raise
    except Exception as error:  # open_clip, timm, safetensors and the hub share no base class
        fix = "Check the network, or download the model and use local-dir:PATH." if _needs_hub(error) else None
        raise ExportError(f"cannot load {model_id}", found=f"{type(error).__name__}: {str(error)[:400].rstrip('.')}", fix=fix) from error


def _needs_hub(error: BaseException | None) -> bool:
    words = ("hub", "connect", "download", "resolve", "offline")
    return error is not None and (any(word in f"{type(error)} {error}".lower() for word in words) or _needs_hub(error.__cause__))


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence open_clip's logging, which repeats on stderr what the error says."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _full_fp32() -> None:
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _refuse_non_finite(model: Any, model_id: str) -> None:
    for name, tensor in model.state_dict().items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise ExportError(
                f"the weights of {model_id} are not finite", found=f"{bad} NaN or infinity in {name}", fix="Use another checkpoint."
            )


def _preprocess(config: Mapping[str, Any]) -> Preprocess:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocess(
        size=(int(height), int(width)),
        resize_mode=config["resize_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fill_color=int(config.get("fill_color", 0)),
    )


def _pooling(text_config: Mapping[str, Any]) -> str:
    if "hf_model_name" in text_config:
        return str(text_config.get("hf_pooler_type", "mean_pooler"))
    if text_config.get("embed_cls", False):
        return "last"  # CoCa appends a class token and always takes it
    return str(text_config.get("pool_type", "argmax"))
