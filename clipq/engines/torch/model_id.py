"""Model ids: every spelling a user may type, brought to the one canonical form that manifests carry."""

from __future__ import annotations

import re
from pathlib import Path

from clipq.errors import UsageError, unknown_name

DEMO_MODELS = ("demo:under", "demo:over")
_EXAMPLES = "ARCHITECTURE:WEIGHTS (such as ViT-B-32:openai), hf-hub:ORG/NAME, local-dir:PATH, or demo"


def canonical_model_id(text: str) -> str:
    """Return the canonical form of a model id; nothing is loaded or looked up.

    ``ViT-B-32:openai`` is canonical; ``M,P``, ``M::P`` and ``M__P`` mean ``M:P``; weights may be a file; ``demo`` is ``demo:under``.

    Raises:
        UsageError: The text is not a model id.

    >>> canonical_model_id("ViT-B/32,laion2b-s34b-b79k")
    'ViT-B-32:laion2b_s34b_b79k'
    >>> canonical_model_id("demo")
    'demo:under'
    """
    text = text.strip()
    if text == "demo" or text.startswith("demo:"):
        return _demo(text)
    for schema in ("hf-hub", "local-dir"):
        if text.startswith(f"{schema}:"):
            return _with_schema(schema, text.removeprefix(f"{schema}:"))
    architecture, *weights = re.split(r",|::|__|:", text, maxsplit=1)
    if not architecture or not weights or not weights[0]:
        raise UsageError("incomplete model id", found=repr(text), expected=_EXAMPLES)
    return f"{architecture.replace('/', '-')}:{_weights(weights[0])}"


def _demo(text: str) -> str:
    name = "demo:under" if text == "demo" else text
    if name not in DEMO_MODELS:
        raise unknown_name("demo model", text, DEMO_MODELS)
    return name


def _with_schema(schema: str, rest: str) -> str:
    if not rest:
        raise UsageError("incomplete model id", found=repr(f"{schema}:"), expected=_EXAMPLES)
    return f"local-dir:{Path(rest).expanduser().resolve()}" if schema == "local-dir" else f"hf-hub:{rest}"


def _weights(text: str) -> str:
    if is_weights_file(text):
        return str(Path(text).expanduser().resolve())
    return text.lower().replace("-", "_")


def is_weights_file(text: str) -> bool:
    """Tell whether the weights of ``ARCHITECTURE:WEIGHTS`` are a file rather than a tag.

    >>> is_weights_file("openai"), is_weights_file("runs/best.safetensors")
    (False, True)
    """
    return "/" in text or Path(text).suffix in {".safetensors", ".bin", ".pt", ".pth", ".npz"}
