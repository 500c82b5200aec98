"""The quantization methods by name: what each does, who published it, what it needs, and the bits that it comes in.

An engine ``ort-<bits>-<method>`` is made by one of them, e.g. ``ort-w4a8-gptq``. Integers of fewer than 8 bits are stored in INT8, so
every runtime computes exactly what fewer bits would give, but nothing gets smaller or faster: such an engine is ``simulated``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from clipq.errors import UsageError, unknown_name

Family = Literal["ptq", "weight-only", "qat"]
FLOAT_BITS = 32
IMAGES, PAIRS, NOTHING = "calibration images", "images with captions or class names", "nothing"
_ENGINE = re.compile(r"(?:ort|trt|trtrtx)-(w\d+a\d+)-(.+)")


@dataclass(frozen=True, slots=True, order=True)
class Bits:
    """Bits of quantized weights and activations, 32 where they stay FP32.

    Attributes:
        weights: 8, 6 or 4.
        activations: 32, 8, 6 or 4.
    """

    weights: int
    activations: int

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"

    @property
    def simulated(self) -> bool:
        """Whether no runtime has kernels for them, so that INT8 ones compute what they would give."""
        return self.activations != FLOAT_BITS and min(self.weights, self.activations) < 8

    @property
    def weight_limit(self) -> int:
        """The largest integer of a weight; the smallest is its negative."""
        return levels(self.weights)

    @property
    def activation_limit(self) -> int:
        """The largest integer of an activation; the smallest is its negative."""
        return levels(self.activations)


def levels(bits: int) -> int:
    """Return the largest integer of a symmetric grid; the smallest is its negative.

    >>> levels(8), levels(4)
    (127, 7)
    """
    return int(2 ** (bits - 1)) - 1


W8A8 = Bits(8, 8)
_INTEGER = {str(bits): bits for bits in (W8A8, Bits(6, 8), Bits(6, 6), Bits(4, 8), Bits(4, 4))}
_WEIGHTS_ALONE = {str(bits): bits for bits in (Bits(8, FLOAT_BITS), Bits(4, FLOAT_BITS))}
BITS: Mapping[str, Bits] = {**_INTEGER, **_WEIGHTS_ALONE}


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        name: As in an engine's id.
        family: ``ptq`` (no training), ``weight-only`` (activations stay FP32) or ``qat`` (training with quantization in the loop).
        what: What it does, in a line.
        source: Who published it.
        needs: ``calibration images``, ``images with captions or class names``, or ``nothing``.
    """

    name: str
    family: Family
    what: str
    source: str
    needs: str = IMAGES

    @property
    def bits(self) -> Mapping[str, Bits]:
        """The bits it comes in, by name."""
        return _WEIGHTS_ALONE if self.family == "weight-only" else _INTEGER

    @property
    def runtimes(self) -> str:
        """What executes its graphs."""
        if self.family == "weight-only":
            return "ONNX Runtime on the CPU (MatMulNBits)"
        return "ONNX Runtime; TensorRT and TensorRT-RTX at W8A8"


_ALL = (
    Method("minmax", "ptq", "activation ranges from the largest value, nothing saturates", "Jacob et al. 2018, arXiv 1712.05877"),
    Method("percentile", "ptq", "activation ranges that hold 99.99 % of the values", "Wu et al. 2020, arXiv 2004.09602"),
    Method("entropy", "ptq", "activation ranges of least Kullback-Leibler divergence to 128 levels", "Migacz, GTC 2017"),
    Method("mse", "ptq", "activation ranges and weight scales of least squared error", "Nagel et al. 2021, arXiv 2106.08295"),
    Method(
        "smoothquant", "ptq", "outliers move from activations into weights, alpha searched per layer", "Xiao et al. 2023, arXiv 2211.10438"
    ),
    Method(
        "rotation",
        "ptq",
        "the residual stream in a rotated basis, where outliers are spread",
        "Ashkboos et al. 2024 (QuaRot), arXiv 2404.00456",
    ),
    Method(
        "shift",
        "ptq",
        "activations centred channel by channel, the shift in the bias, and the biases corrected",
        "Wei et al. 2023 (Outlier Suppression+), arXiv 2304.09145",
    ),
    Method(
        "equalize",
        "ptq",
        "every channel of every layer's input centred and balanced, behind GELU too; ranges of mse, weights and biases of gptq",
        "Wei et al. 2023, arXiv 2304.09145; Xiao et al. 2023, arXiv 2211.10438; Frantar et al. 2023, arXiv 2210.17323",
    ),
    Method("gptq", "ptq", "weights rounded one by one, errors carried on; biases corrected", "Frantar et al. 2023, arXiv 2210.17323"),
    Method("bias-correction", "ptq", "the mean error of every layer taken out of its bias", "Nagel et al. 2019, arXiv 1906.04721"),
    Method(
        "rtn", "weight-only", "weights rounded to the nearest, in blocks", "the baseline of Frantar et al. 2023, arXiv 2210.17323", NOTHING
    ),
    Method("hqq", "weight-only", "weights in blocks, zero points by half-quadratic optimisation", "Badri and Shaji 2023 (HQQ)", NOTHING),
    Method("ste", "qat", "ranges from running extremes, straight-through gradients", "Jacob et al. 2018, arXiv 1712.05877", PAIRS),
    Method("dorefa", "qat", "weights through tanh, straight-through gradients", "Zhou et al. 2016, arXiv 1606.06160", PAIRS),
    Method("pact", "qat", "learned clipping values of activations", "Choi et al. 2018, arXiv 1805.06085", PAIRS),
    Method("lsq", "qat", "learned step sizes", "Esser et al. 2020, arXiv 1902.08153", PAIRS),
    Method("lsq-plus", "qat", "learned step sizes and offsets", "Bhalgat et al. 2020, arXiv 2004.09576", PAIRS),
    Method(
        "lsq-distill",
        "qat",
        "learned step sizes, taught by FP32's similarities",
        "Esser et al. 2020; Hinton et al. 2015, arXiv 1503.02531",
        PAIRS,
    ),
    Method("lsq-mse", "qat", "as lsq-distill, and by FP32's embeddings", "Bouguerra et al. 2025, arXiv 2509.21173", PAIRS),
    Method(
        "lsq-plus-mse",
        "qat",
        "as lsq-mse, with learned offsets",
        "Bhalgat et al. 2020, arXiv 2004.09576; Bouguerra et al. 2025, arXiv 2509.21173",
        PAIRS,
    ),
    Method("rotation-lsq", "qat", "learned step sizes in the rotated basis", "Bouguerra et al. 2025, arXiv 2509.21173", PAIRS),
    Method(
        "equalize-lsq",
        "qat",
        "learned step sizes in the tower of equalize, taught as lsq-mse",
        "Esser et al. 2020; Wei et al. 2023, arXiv 2304.09145",
        PAIRS,
    ),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


def engine_ids(methods: Iterable[str], bits: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of the engines that some methods give at some bits, each method at those of the bits that it comes in.

    >>> engine_ids(["gptq", "hqq"], ["W8A8", "w4a8", "W4A32"])
    ('ort-w8a8-gptq', 'ort-w4a8-gptq', 'ort-w4a32-hqq')

    Raises:
        UsageError: A method or bits are unknown, or a method comes in none of the bits.
    """
    asked = [name.upper() for name in bits]
    for name in asked:
        if name not in BITS:
            raise unknown_name("bits", name, BITS)
    found: list[str] = []
    for name in methods:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
        own = [one for one in asked if one in METHODS[name].bits]
        if not own:
            raise UsageError(f"{name} comes in other bits", found=", ".join(asked) or "none", expected=", ".join(METHODS[name].bits))
        found.extend(f"ort-{one.lower()}-{name}" for one in own)
    return tuple(dict.fromkeys(found))


def method_of(engine_id: str) -> tuple[Method, Bits] | None:
    """Return the method and the bits of an engine's id, or None where it names none.

    >>> method, bits = method_of("ort-w4a8-lsq-plus")
    >>> method.name, str(bits), method_of("ort-int8-static")
    ('lsq-plus', 'W4A8', None)
    """
    match = _ENGINE.fullmatch(engine_id)
    method = METHODS.get(match[2]) if match else None
    bits = method.bits.get(match[1].upper()) if match and method else None
    return (method, bits) if method and bits else None


def all_engine_ids() -> tuple[str, ...]:
    """Return the id of every method at every of its bits."""
    return tuple(f"ort-{bits.lower()}-{method.name}" for method in METHODS.values() for bits in method.bits)
