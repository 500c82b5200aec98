"""Which engine is named pointless on a machine: INT8 that is neither faster nor more reliable than FP16, and why."""

from __future__ import annotations

from typing import Any

import pytest

from clipq.evaluate.domination import dominated_by, domination
from clipq.evaluate.verdict import judge

Layers = dict[str, Any]


def measured(value: float, half: float = 0.01) -> dict[str, Any]:
    """A measurement whose difference to the baseline has this half interval."""
    return {"value": value, "ci95": None, "n": 1000, "delta": 0.0, "delta_ci95": [-half, half], "p_value": None}


def engine(precision: str, acc1: float = 0.7, ece15: float = 0.05, auroc: float = 0.9, **times: float) -> dict[str, Any]:
    """What a report says of one engine; latencies by scenario, 10 ms and 300 ms where not given."""
    scenarios = {"image_b1": 0.010, "image_b32": 0.300, **times}
    return {
        "entry": {"precision": precision, "size_bytes": 50 if precision == "int8" else 100},
        "results": {"d": {"acc1": measured(acc1), "ece15": measured(ece15)}},
        "ood": {"d|far": {"mcm": {"auroc": measured(auroc)}}},
        "bench": {name.replace("_", "-"): {"p50_s": seconds} for name, seconds in scenarios.items()},
    }


def report(**engines: dict[str, Any]) -> dict[str, Any]:
    """A report of the given engines; the first is the baseline."""
    parts = {part: {name: one[part] for name, one in engines.items()} for part in ("results", "ood", "bench")}
    entries = {name: one["entry"] for name, one in engines.items()}
    return {"baseline": next(iter(engines)), "engines": entries, "datasets": {"d": {"n": 1000}}, "paired": {}, **parts}


BASE = engine("fp32", image_b1=0.04, image_b32=1.0)


def test_int8_that_is_not_faster_than_fp16_is_dominated():
    """Smaller files alone do not save it, and the sentence holds the ratio at every batch."""
    found = report(base=BASE, fp16=engine("fp16"), int8=engine("int8", image_b1=0.009, image_b32=0.33))
    assert dominated_by(found, "int8") == "fp16"
    assert dominated_by(found, "fp16") is None
    sentence = domination(found, "int8", "fp16")
    assert sentence.startswith(
        "dominated by fp16 here: that is as reliable within noise, 0.90× as fast at image-b1, 1.1× as fast at image-b32"
    )
    assert "100 B against 50 B" in sentence


@pytest.mark.parametrize(
    "int8",
    [
        engine("int8", image_b32=0.2),
        engine("int8", acc1=0.72),
        engine("int8", ece15=0.03),
        engine("int8", auroc=0.92),
    ],
)
def test_faster_or_more_reliable_is_not_dominated(int8):
    """Speed at the largest batch, accuracy, ECE or AUROC beyond noise: each alone is a reason to exist."""
    assert dominated_by(report(base=BASE, fp16=engine("fp16"), int8=int8), "int8") is None


@pytest.mark.parametrize("int8", [engine("int8", image_b32=0.29), engine("int8", acc1=0.705), engine("int8", ece15=0.045)])
def test_within_noise_is_no_reason(int8):
    """5 % of latency, and differences inside the half interval, count as equal."""
    assert dominated_by(report(base=BASE, fp16=engine("fp16"), int8=int8), "int8") == "fp16"


def test_only_a_wider_precision_dominates_an_equal():
    """Of two equal engines of one precision neither makes the other pointless; nor does INT8 an equal FP16 that is larger."""
    found = report(base=BASE, one=engine("int8"), two=engine("int8"), fp16=engine("fp16"))
    assert dominated_by(found, "one", failed=["fp16"]) is None
    assert dominated_by(found, "fp16") is None


def test_less_accurate_fp16_dominates_nobody():
    """FP16 can break: then INT8 is the more reliable of the two."""
    assert dominated_by(report(base=BASE, fp16=engine("fp16", acc1=0.2), int8=engine("int8")), "int8") is None


def test_the_wall_clock_decides():
    """A device's own clock leaves out the copies that a user waits for."""
    fp16, int8 = engine("fp16"), engine("int8")
    fp16["bench"]["image-b32-device"], int8["bench"]["image-b32-device"] = {"p50_s": 0.2}, {"p50_s": 0.1}
    assert dominated_by(report(base=BASE, fp16=fp16, int8=int8), "int8") == "fp16"


def test_the_baseline_dominates_too():
    """An INT8 engine slower than FP32 PyTorch is worse than nothing."""
    assert dominated_by(report(base=BASE, int8=engine("int8", image_b1=0.05, image_b32=1.4)), "int8") == "base"


def layers(ran: float, attention: str, reformats: int, precision: str = "int8") -> Layers:
    """A proof, as short as domination needs it."""
    shares = {"multiply_adds": {precision: ran, "fp32": 1 - ran}, "asked": {precision: 0.96, "fp32": 0.04}}
    return {"source": "x", "towers": ["image"], "attention": attention, "reformats": reformats, **shares}


def test_the_layers_that_ran_give_the_reason():
    """Too little INT8, attention in pieces and many reformats are said; what is as good as the other's is not."""
    fp16, int8 = engine("fp16"), engine("int8")
    fp16["entry"]["layers"], int8["entry"]["layers"] = layers(0.96, "fused", 4, "fp16"), layers(0.6, "not fused", 40)
    sentence = domination(report(base=BASE, fp16=fp16, int8=int8), "int8", "fp16")
    assert "only 60.0 % of its work ran in INT8, of 96.0 % asked for" in sentence
    assert "its attention is not fused, that of fp16 is fused" in sentence
    assert sentence.endswith("40 of its kernels only change formats, against 4")
    int8["entry"]["layers"]["towers"] = ["image", "text"]
    assert "kernels" not in domination(report(base=BASE, fp16=fp16, int8=int8), "int8", "fp16")
    int8["entry"]["layers"] = layers(0.96, "fused", 5)
    assert ";" not in domination(report(base=BASE, fp16=fp16, int8=int8), "int8", "fp16")


def test_old_reports_have_no_reason_and_are_judged():
    """Layers of the older form, precision to count, are left alone."""
    fp16, int8 = engine("fp16"), engine("int8")
    int8["entry"]["layers"] = {"int8": 24, "fp32": 61}
    found = report(base=BASE, fp16=fp16, int8=int8)
    _, verdict = judge(found, ["acc1.delta<-0.01"])
    assert verdict["int8"]["dominated_by"] == "fp16"
    assert verdict["int8"]["why"][-1].startswith("dominated by fp16 here")
