"""Makes open_clip importable: beside a CPU-only torch, a torchvision built for CUDA lacks two operators that open_clip never calls."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from clipq.errors import MissingRuntimeError, missing_extra

_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[Any] = []  # a torch.library.Library takes its operators away when it is collected


def import_open_clip() -> ModuleType:
    """Return the ``open_clip`` module, ready to use.

    Raises:
        MissingRuntimeError: torch, torchvision or open_clip is not installed, or they do not fit each other.
    """
    define_missing_operators()
    try:
        return importlib.import_module("open_clip")
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError when it does not fit torch
        raise MissingRuntimeError(
            "open_clip cannot be imported", found=error, fix="Install matching versions with: pip install 'clipq[export]'"
        ) from error


def define_missing_operators() -> None:
    """Define ``torchvision::nms`` and ``torchvision::qnms`` where they are missing, so that torchvision and open_clip import.

    Raises:
        MissingRuntimeError: torch, torchvision or open_clip is not installed.
    """
    for name in ("torch", "torchvision", "open_clip"):
        if importlib.util.find_spec(name) is None:
            raise missing_extra(name, "export")
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise MissingRuntimeError("torchvision cannot be imported", found=error, fix="Run: pip install 'clipq[export]'") from error
    else:
        return
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}{_NMS_SCHEMA}")
    _kept.append(library)
