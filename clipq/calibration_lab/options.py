"""What one run of the lab is asked for: forms of quantization, calibration data, how many images, how many draws."""

from __future__ import annotations

from dataclasses import dataclass

from clipq.errors import UsageError
from clipq.methods import NOTHING, Bits, Method, engine_ids, method_of

FEWEST_DRAWS = 2


@dataclass(frozen=True, slots=True)
class Form:
    """A method at some bits."""

    method: Method
    bits: Bits

    def __str__(self) -> str:
        return f"{self.method.name} {self.bits}"


@dataclass(frozen=True, slots=True)
class LabOptions:
    """One run.

    Attributes:
        calib: Data ids to draw calibration images from; the first is what the others are compared with.
        data: The test images, labelled; no calibration image may be among them.
        ood: OOD images; empty leaves their metric out.
        calib_n: Numbers of calibration images.
        seeds: Draws of each number.
        methods: Names of quantization methods.
        bits: Names of bits.
        limit: At most this many test and OOD images.
        seed: Seed of the first draw, of the choice of test images and of the resamples.
        resume: Go on with the decoded pixels of an interrupted run; what was finished is used again in any case.
        batch_size: Images of one inference.
        threads: CPU threads; None means one per usable core.
        resamples: Bootstrap resamples.
    """

    calib: tuple[str, ...]
    data: str
    ood: str = ""
    calib_n: tuple[int, ...] = (16, 64, 256)
    seeds: int = 5
    methods: tuple[str, ...] = ("percentile",)
    bits: tuple[str, ...] = ("W8A8",)
    limit: int | None = 2000
    seed: int = 0
    resume: bool = False
    batch_size: int = 32
    threads: int | None = None
    resamples: int = 2000

    def __post_init__(self) -> None:
        counts = {"--calib-n": min(self.calib_n, default=0), "--limit": self.limit, "--resamples": self.resamples}
        counts |= {"--batch-size": self.batch_size, "--threads": self.threads}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise UsageError(f"{name} is wrong", found=value, expected="a number of at least 1")
        if self.seeds < FEWEST_DRAWS:
            raise UsageError("--seeds is too small to show a band", found=self.seeds, expected=f"at least {FEWEST_DRAWS}")
        if self.seed < 0:
            raise UsageError("--seed is negative", found=self.seed, expected="0 or more")
        for name, given in (("--calib", self.calib), ("--method", self.methods), ("--bits", self.bits)):
            if not given:
                raise UsageError(f"{name} names nothing", expected="one or more, with commas between them")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of calibration images, each once, ascending."""
        return tuple(sorted(set(self.calib_n)))

    @property
    def draws(self) -> range:
        """The seeds of the draws."""
        return range(self.seed, self.seed + self.seeds)

    def forms(self) -> list[Form]:
        """Return what is quantized how.

        Raises:
            UsageError: A method or bits are unknown or do not go together, or a method has no ranges to calibrate.
        """
        forms = [Form(*named) for engine_id in engine_ids(self.methods, self.bits) if (named := method_of(engine_id))]
        for form in forms:
            if form.method.needs == NOTHING:
                raise UsageError(
                    f"{form.method.name} needs no calibration images, so no draw of them changes it", fix="Name another --method."
                )
            if form.method.family == "qat":
                fix = "Train it with clipq-export, once per --seed, and compare the bundles with clipq eval."
                raise UsageError(f"{form.method.name} trains on pairs and is not calibrated, so the lab does not draw for it", fix=fix)
        return forms
