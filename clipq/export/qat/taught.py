"""What training has taught a tower, by the names of the graph, and the check that PyTorch and ONNX Runtime agree on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.errors import ExportError
from clipq.export.qat.sites import PRODUCTS, Observer, node_of
from clipq.export.qat.wrap import Wrapped, weight_of
from clipq.export.quantize.observe import Observed
from clipq.export.quantize.scheme import Learned

MIN_AGREEMENT = 0.999
MIN_COSINE = 0.9999
SMALL_SHARE, LARGE_SHARE = 0.05, 0.5  # of what quantization itself changes; noise of its own in every rounding would be twice that
TINY = 1e-6  # a loss of cosine that needs no share
UNTRAINED = "no linear layer of a residual block: training left it FP32"
_WEIGHT_ERROR = 1e-5  # relative: the scale of the queries is divided out and multiplied in again


@dataclass(frozen=True, slots=True)
class Taught:
    """What the graph of a trained tower is made of.

    Attributes:
        clips: Largest absolute value of what each quantized layer reads, by node.
        weights: Integers ``(in, out)`` and scales ``(out,)`` by node.
        products: Largest absolute values of both inputs of each quantized product, by node; None for probabilities.
    """

    clips: Mapping[str, float]
    weights: Mapping[str, tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]]
    products: Mapping[str, tuple[float | None, float]]

    def learned(self, observed: Observed) -> tuple[Learned, dict[str, str]]:
        """Return what is learned by the names of a graph's tensors and layers, and the nodes that nobody trained, each with the reason.

        Raises:
            ExportError: A trained layer or product is not in the graph, or has another weight there.
        """
        layers = {layer.name: layer for layer in observed.layers}
        products = {product.name: product for product in observed.products}
        if missing := [name for name in (*self.clips, *self.products) if name not in layers and name not in products]:
            raise ExportError("a trained layer is not in the graph", found=f"no {missing[0]}", expected=f"one of {', '.join(layers)}")
        for name, (integers, scales) in self.weights.items():
            _compare(name, layers[name].weight, integers, scales)
        clips = {layers[name].activation: clip for name, clip in self.clips.items()}
        if len(clips) != len(self.clips):
            raise ExportError("two trained layers read one tensor", found=f"{len(clips)} tensors", expected=f"{len(self.clips)}")
        for name, ends in self.products.items():
            clips.update({tensor: end for tensor, end in zip(products[name].inputs, ends, strict=True) if end is not None})
        untrained = [name for name in (*layers, *products) if name not in self.clips and name not in self.products]
        return Learned(clips, self.weights), dict.fromkeys(untrained, UNTRAINED)


def taught(wrapped: Wrapped) -> Taught:
    """Return what a trained tower's quantizers came to; call it before ``unwrap``."""
    clips, weights = {}, {}
    for spot in wrapped.spots:
        node, quantizer = f"{node_of(spot.site.path)}/MatMul", spot.site.reads.quantizer
        integers, scales = spot.site.weight.integers(weight_of(spot))
        clips[node] = _clip(spot.site.reads)
        weights[node] = (np.ascontiguousarray(integers.cpu().numpy().T), scales.detach().cpu().numpy().astype(np.float32))
        assert quantizer.grid.most > 0
    products: dict[str, tuple[float | None, float]] = {}
    for path, attention in wrapped.attentions.items():
        scores, values = (node_of(f"{path}.{product}") for product in PRODUCTS)
        if "q" in attention.products:
            products[scores] = (_clip(attention.products["q"]), _clip(attention.products["k"]))
        if "v" in attention.products:
            products[values] = (None, _clip(attention.products["v"]))
    return Taught(clips, weights, products)


def _clip(observer: Any) -> float:
    assert isinstance(observer, Observer)
    return float(observer.quantizer.step.detach().double()) * observer.quantizer.grid.most


def _compare(name: str, weight: npt.NDArray[np.float32], integers: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> None:
    expected = integers * scales
    if weight.shape != expected.shape or np.abs(weight - expected).max() > _WEIGHT_ERROR * np.abs(expected).max():
        raise ExportError(f"{name} has another weight than the layer that was trained", found=weight.shape, expected=expected.shape)


def compare(
    found: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
    exact: npt.NDArray[np.float32],
    chosen: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]],
) -> dict[str, Any]:
    """Return how far ONNX Runtime's embeddings of a trained tower are from PyTorch's fake quantization.

    The two add in another order, so a value halfway between two integers may become the one here and the other there. In 4 bits each such
    value moves by a seventh of the range, and a mean cosine below 0.9999 is no sign of a wrong graph as long as it is small beside what
    quantization itself has changed. A wrong graph in 8 bits may well have 0.9999, but not be small beside that. A value that is rounded
    the other way moves all that follow, so ONNX Runtime itself may be a good part of that from the same graph without its optimizations.
    Answers follow the distance, not its square: of those that quantization changes, the root of the share is expected to differ too, and
    two standard deviations of such a count more may.

    Args:
        found: ONNX Runtime's embeddings ``(n, d)``.
        expected: PyTorch's.
        exact: FP32's.
        chosen: The nearest text of each held-out image by ONNX Runtime, by PyTorch and by FP32.

    Returns:
        ``agreement`` (share of equal nearest texts), ``images`` (how many), ``cosine`` (mean), ``least_cosine``, ``inputs`` (n),
        ``share`` (1 - cosine to PyTorch, as a share of 1 - cosine of PyTorch to FP32).

    Raises:
        ExportError: The mean cosine is below 0.9999 and the share above 5 %; or the share is above 50 % and the cosine below 0.999999;
            or more images disagree than 0.1 % of them, rounded up, and than the distance explains.
    """
    cosines = _cosines(found, expected)
    lost, moved = 1 - float(cosines.mean()), 1 - float(_cosines(expected, exact).mean())
    differ, changed, images = int((chosen[0] != chosen[1]).sum()), int((chosen[1] != chosen[2]).sum()), len(chosen[0])
    share = max(lost, 0.0) / max(moved, 1e-12) if np.isfinite(lost) else float("inf")
    explained = share**0.5 * changed if np.isfinite(share) else 0.0
    allowed = math.ceil(max((1 - MIN_AGREEMENT) * images, explained + 2 * explained**0.5))
    near = (lost <= 1 - MIN_COSINE or share <= SMALL_SHARE) and (lost <= TINY or share <= LARGE_SHARE)
    if not near or differ > allowed:
        raise ExportError(
            "the graph does not compute what was trained",
            found=f"cosine {1 - lost:.6f}, {differ} of {images} nearest texts differ, {share:.1%} of what quantization changes",
            expected=f"at least {MIN_COSINE}, at most {allowed}, at most {LARGE_SHARE:.0%}",
        )
    figures = {"agreement": 1 - differ / images, "images": images, "cosine": 1 - lost, "least_cosine": float(cosines.min())}
    return {**figures, "inputs": len(found), "share": share}


def _cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    cosines: npt.NDArray[np.float64] = (a64 * b64).sum(axis=1) / (np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1))
    return cosines
