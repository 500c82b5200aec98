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
# Of weights in blocks and their product ONNX Runtime makes one MatMulNBits, which by its own default rounds activations to 8 bits
# (``kOrtSessionOptionsQDQMatMulNBitsAccuracyLevel``, level 4). Level 1 keeps them FP32.
FP32_ACTIVATIONS: Mapping[str, str] = {"session.qdq_matmulnbits_accuracy_level": "1"}


def session_entries(entry: EngineEntry) -> dict[str, str]:
    """Return the session entries without which an engine may compute something else than what clipq measures; mostly none."""
    if not entry.quantized or (entry.runtime, entry.provider) != ("onnxruntime", CPU):
        return {}
    return dict({"int8": EXACT_PRODUCTS, "int8-weights": FP32_ACTIVATIONS, "int4-weights": FP32_ACTIVATIONS}.get(entry.precision, {}))


def session_options(threads: int = 0, *, exact_products: bool = True) -> Any:
    """Return ``onnxruntime.SessionOptions`` that are silent below errors.

    Args:
        threads: Of one inference; 0 is ONNX Runtime's own choice.
        exact_products: Set ``EXACT_PRODUCTS``.
    """
    options = importlib.import_module("onnxruntime").SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for name, value in {**FP32_ACTIVATIONS, **(EXACT_PRODUCTS if exact_products else {})}.items():
        options.add_session_config_entry(name, value)
    return options
