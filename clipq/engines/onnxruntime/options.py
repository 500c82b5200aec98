"""How every session of ONNX Runtime is made, so that all that clipq measures comes from the same kernels."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from clipq.artifact import EngineEntry
from clipq.engines.onnxruntime.providers import CPU

# On x86 processors without VNNI, ONNX Runtime's integer kernels add pairs of products in 16 bits, which saturate. With this entry they
# are as exact as on every other processor (``kOrtSessionOptionsAvx2PrecisionMode`` in ``onnxruntime_session_options_config_keys.h``);
# elsewhere it changes nothing.
EXACT_PRODUCTS: Mapping[str, str] = {"session.x64quantprecision": "1"}


def session_entries(entry: EngineEntry) -> dict[str, str]:
    """Return the session entries without which an engine may compute something else than what clipq measures; mostly none."""
    integers = entry.quantized and (entry.runtime, entry.provider, entry.precision) == ("onnxruntime", CPU, "int8")
    return dict(EXACT_PRODUCTS) if integers else {}


def session_options(threads: int = 0, *, exact_products: bool = True) -> Any:
    """Return ``onnxruntime.SessionOptions`` that are silent below errors.

    Args:
        threads: Of one inference; 0 is ONNX Runtime's own choice.
        exact_products: Set ``EXACT_PRODUCTS``.
    """
    options = importlib.import_module("onnxruntime").SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for name, value in EXACT_PRODUCTS.items() if exact_products else ():
        options.add_session_config_entry(name, value)
    return options
