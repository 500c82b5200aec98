"""What was asked of an export, as one frozen value whose hash goes into every artefact."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from clipq.errors import UsageError, unknown_name
from clipq.files import sha256_json

CalibrationMethod = Literal["minmax", "percentile", "entropy", "mse"]
CALIBRATION_METHODS: tuple[str, ...] = get_args(CalibrationMethod)
TOWERS = ("image", "text")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One export.

    Attributes:
        model: Canonical model id.
        engines: Engine ids to make.
        towers: The towers that INT8 engines quantize; the others stay FP32.
        calib: Data id of the calibration images; empty when no engine needs any.
        calib_n: Number of calibration images.
        calib_method: How activation ranges are chosen.
        calib_sampling: ``random`` or ``balanced`` (the same number per class).
        seed: Seed of the sampling.
        version: Version of this record's meaning.
    """

    model: str
    engines: tuple[str, ...] = ("torch-fp32", "ort-fp32", "ort-int8-dynamic", "ort-int8-static")
    towers: tuple[str, ...] = ("image",)
    calib: str = ""
    calib_n: int = 512
    calib_method: CalibrationMethod = "percentile"
    calib_sampling: Literal["random", "balanced"] = "random"
    seed: int = 0
    version: int = 1

    def __post_init__(self) -> None:
        if self.calib_method not in CALIBRATION_METHODS:
            raise unknown_name("calibration method", self.calib_method, CALIBRATION_METHODS)
        for tower in self.towers:
            if tower not in TOWERS:
                raise unknown_name("tower", tower, TOWERS)
        if self.calib_n < 1:
            raise UsageError("--calib-n is too small", found=self.calib_n, expected="at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON value."""
        return asdict(self)

    def sha256(self) -> str:
        """Return the hash that artefacts carry."""
        return sha256_json(self.to_json())
