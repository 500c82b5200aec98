"""Where a checkpoint's weights came from, as far as this machine knows without asking anybody."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

from clipq.engines.torch.compat import import_open_clip
from clipq.engines.torch.model_id import is_weights_file


def model_origin(model_id: str) -> dict[str, str]:
    """Return the source of a model that is loaded already, and its revision where it came through the hub.

    Args:
        model_id: Canonical model id.

    Returns:
        ``source``: ``embedded``, ``local``, ``random``, ``hf-hub:ORG/NAME`` or an address; ``revision``: the hub's commit.
    """
    kind, _, rest = model_id.partition(":")
    if kind in {"demo", "local-dir"}:
        return {"source": "embedded" if kind == "demo" else "local"}
    if kind == "hf-hub":
        return _hub(rest.removesuffix("/"))
    if rest == "random" or is_weights_file(rest):
        return {"source": "random" if rest == "random" else "local"}
    published: dict[str, Any] = import_open_clip().get_pretrained_cfg(kind, rest) or {}
    name = str(published.get("hf_hub") or "")
    if name:
        return _hub("/".join(name.split("/")[:2]))
    return {"source": str(published.get("url") or "unknown")}


def _hub(name: str) -> dict[str, str]:
    revision = ""
    with contextlib.suppress(ImportError, OSError):  # not through the hub's cache: nobody here knows the revision
        cache = Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)
        revision = (cache / f"models--{name.replace('/', '--')}" / "refs" / "main").read_text().strip()
    return {"source": f"hf-hub:{name}", **({"revision": revision} if revision else {})}
