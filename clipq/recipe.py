"""What was asked of an export, as one frozen value whose hash goes into every artefact."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from clipq.errors import UsageError, unknown_name
from clipq.files import sha256_json

CalibrationMethod = Literal["minmax", "percentile", "entropy", "mse"]
CALIBRATION_METHODS: tuple[str, ...] = get_args(CalibrationMethod)
TOWERS = ("image", "text")
AttentionPrecision = Literal["fp16", "int8"]
ATTENTION_PRECISIONS: tuple[str, ...] = get_args(AttentionPrecision)
LARGEST_BATCH = 65_536  # far above what any device holds, far below what a builder's 32-bit sizes do
COMPATIBILITIES = ("version", "hardware")
QAT_TRAINED = ("all", "scales")
QAT_DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One export.

    Attributes:
        model: Canonical model id.
        engines: Engine ids to make.
        towers: The towers that get an engine's precision; the others stay FP32.
        calib: Data id of the calibration images; empty when no engine needs any.
        calib_n: Number of calibration images.
        calib_method: How activation ranges are chosen.
        calib_sampling: ``random`` or ``balanced`` (the same number per class).
        patch_tokens: Give the image tower a second output, a feature per patch, for GL-MCM.
        mha: Products of attention in static INT8: ``int8`` quantizes them, ``fp16`` leaves them to the precision of the rest.
        sensitivity: Rank the blocks by the damage of quantizing each alone.
        max_drop: Bounds ``METRIC=VALUE``; blocks stay unquantized, the most damaging first, until the calibration images hold them.
        calib_ood: Data id of OOD images for ``fpr95`` in ``max_drop`` and ``sensitivity``; never of those you evaluate on.
        qat_data: Data id of the pairs that methods with training train on; empty for the calibration data.
        qat_pairs: How many pairs; a fifth as many more are held out.
        qat_steps: Training steps.
        qat_batch: Pairs per step.
        qat_every: A row of the training table, and a saved state, every so many steps.
        qat_train: ``all``: the tower's weights and its quantizers; ``scales``: its quantizers alone.
        qat_lr: Peak learning rate of the weights.
        qat_scale_lr: Peak learning rate of what the quantizers learn, relative: 0.001 moves a step by about 0.1 % at a time.
        qat_device: ``cpu``, ``cuda``, or ``auto``, which is CUDA where PyTorch has it.
        batch: Smallest, usual and largest batch of a plan.
        graphs_only: Make the portable graphs of planned engines; their plans are built later, on the target.
        compatibility: ``version`` and ``hardware``: plans that other TensorRT versions, other GPUs can load, at some cost in speed.
        compute_capabilities: GPUs that TensorRT-RTX builds for, e.g. ``8.9``; empty for its portable default.
        seed: Seed of the sampling.
        version: Version of this record's meaning.
    """

    model: str
    engines: tuple[str, ...] = ("torch-fp32", "ort-fp32", "ort-int8-dynamic", "ort-int8-static")
    towers: tuple[str, ...] = ("image",)
    patch_tokens: bool = False
    calib: str = ""
    calib_n: int = 512
    calib_method: CalibrationMethod = "percentile"
    calib_sampling: Literal["random", "balanced"] = "random"
    mha: AttentionPrecision = "fp16"
    sensitivity: bool = False
    max_drop: tuple[str, ...] = ()
    calib_ood: str = ""
    qat_data: str = ""
    qat_pairs: int = 1000
    qat_steps: int = 400
    qat_batch: int = 32
    qat_every: int = 100
    qat_train: Literal["all", "scales"] = "all"
    qat_lr: float = 1e-5
    qat_scale_lr: float = 1e-3
    qat_device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: tuple[int, int, int] = (1, 32, 128)
    graphs_only: bool = False
    compatibility: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    seed: int = 0
    version: int = 1

    def __post_init__(self) -> None:
        if self.calib_method not in CALIBRATION_METHODS:
            raise unknown_name("calibration method", self.calib_method, CALIBRATION_METHODS)
        if self.mha not in ATTENTION_PRECISIONS:
            raise unknown_name("precision of attention", self.mha, ATTENTION_PRECISIONS)
        for kind, names, known in (("tower", self.towers, TOWERS), ("compatibility", self.compatibility, COMPATIBILITIES)):
            for name in names:
                if name not in known:
                    raise unknown_name(kind, name, known)
        if len(self.batch) != 3 or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2] <= LARGEST_BATCH:
            expected = f"smallest,usual,largest up to {LARGEST_BATCH}, e.g. 1,32,128"
            raise UsageError("--batch is wrong", found=",".join(map(str, self.batch)), expected=expected)
        if self.calib_n < 1:
            raise UsageError("--calib-n is too small", found=self.calib_n, expected="at least 1")
        self._check_training()

    def _check_training(self) -> None:
        for name, value, known in (("what to train", self.qat_train, QAT_TRAINED), ("device to train on", self.qat_device, QAT_DEVICES)):
            if value not in known:
                raise unknown_name(name, value, known)
        for option, number, least in (
            ("pairs", self.qat_pairs, 2),
            ("steps", self.qat_steps, 1),
            ("batch", self.qat_batch, 2),
            ("every", self.qat_every, 1),
        ):
            if number < least:
                raise UsageError(f"--qat-{option} is too small", found=number, expected=f"at least {least}")
        for option, rate in (("lr", self.qat_lr), ("scale-lr", self.qat_scale_lr)):
            if not 0 < rate < 1:
                raise UsageError(f"--qat-{option} is no learning rate", found=rate, expected="above 0, below 1")

    @property
    def training(self) -> dict[str, Any]:
        """What is said about training, by field."""
        return {name: value for name, value in self.to_json().items() if name.startswith("qat_")}

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON value."""
        return asdict(self)

    def sha256(self) -> str:
        """Return the hash that artefacts carry."""
        return sha256_json(self.to_json())
