"""The sentences of the lab: what each of them claims is what the record says."""

from __future__ import annotations

from typing import Any

import pytest

from clipq.calibration_lab.tell import foreign_rows, remarks, rows, sentences


def _band(low: float, high: float, interval: tuple[float, float], *, within: bool) -> dict[str, Any]:
    middle = (low + high) / 2
    ends = {"mean": middle, "min": low, "max": high, "sd": (high - low) / 2**0.5, "delta": middle, "band_within_interval": within}
    return {**ends, "values": [low, high], "ci95": list(interval), "delta_ci95": list(interval)}


def _found(**change: Any) -> dict[str, Any]:
    head = {"method": "percentile", "bits": "W8A8", "calib": "own"}
    narrow, wide = _band(0.04, 0.06, (0.03, 0.08), within=True), _band(0.9, 0.99, (0.94, 0.95), within=False)
    metrics = dict.fromkeys(("disagreement", "acc1", "ece15", "signed_gap"), narrow) | {"cosine_centred": wide}
    moved = {name: {"delta": 0.02, "delta_ci95": [0.01, 0.03], "bands_apart": True} for name in metrics}
    found = {
        "provenance": {"seeds": [0, 1], "model": {"id": "toy"}},
        "dataset": {"id": "test", "n": 500},
        "ood": None,
        "calibration": [
            {"id": "own", "size": 300, "shared": {"16": 0.05, "256": 0.85}},
            {"id": "other", "size": 9000, "shared": {"16": 0.0, "256": 0.03}},
        ],
        "forms": [{"method": "percentile", "bits": "W8A8", "simulated": False}],
        "rows": [{**head, "n": 16, "metrics": metrics}, {**head, "n": 256, "metrics": metrics}],
        "enough": [{**head, "n": 16}],
        "foreign": [{**head, "calib": "other", "against": "own", "n": 256, "metrics": moved}],
    }
    return found | change


def test_a_sentence_word_for_word() -> None:
    """Mean, band, interval, the number that is enough, metrics whose draws go further, and what foreign images change."""
    (said,) = sentences(_found())
    assert said == (
        "percentile W8A8: calibrated on 256 images of own, 5.00 % of the predictions differ from FP32's. The band of 2 draws, 4.00 to "
        "6.00 %, lies within the interval that 500 test images leave, 3.00 to 8.00 %. From 16 images on no draw is above it. Beyond such "
        "an interval the draws move: Cosine, centred. Images of other instead change that by +2.00 pp [+1.00, +3.00], more than draws "
        "and test images explain."
    )


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        ({"delta": 0.02, "delta_ci95": [-0.01, 0.03], "bands_apart": True}, "which draws or test images can explain"),
        ({"delta": 0.02, "delta_ci95": [0.01, 0.03], "bands_apart": False}, "which draws or test images can explain"),
        (
            {"delta": -0.02, "delta_ci95": [-0.03, -0.01], "bands_apart": True},
            "−2.00 pp [−3.00, −1.00], more than draws and test images explain",
        ),
    ],
)
def test_foreign_images_matter_only_beyond_both_spreads(moved: dict[str, Any], said: str) -> None:
    """A difference counts where the bands are apart and the interval excludes 0, whichever way it goes."""
    found = _found()
    entry = {**found["foreign"][0], "metrics": {**found["foreign"][0]["metrics"], "disagreement": moved}}
    assert said in sentences(_found(foreign=[entry]))[0]


def test_no_number_is_enough() -> None:
    """Where even the largest number has a draw beyond its own interval, the sentence says so."""
    enough = {**_found()["enough"][0], "n": None}
    assert (
        "No number of images measured here keeps every draw below the upper end of that interval." in sentences(_found(enough=[enough]))[0]
    )


def test_which_spread_is_wider() -> None:
    """A row names the wider of both, and has no difference from FP32 where the figure is one itself."""
    found = _found()
    assert rows(found, "disagreement")[0] == [
        "percentile W8A8",
        "own",
        "16",
        "5.00 %",
        "4.00 to 6.00 %",
        "1.41 pp",
        "",
        "3.00 to 8.00 %",
        "the interval",
    ]
    assert rows(found, "acc1")[0][-3:] == ["+5.00 pp", "[+3.00, +8.00]", "the interval"]
    assert rows(found, "cosine_centred")[0][-1] == "the band"
    assert foreign_rows(found)[0][:4] == ["percentile W8A8", "other", "256", "+2.00 pp [+1.00, +3.00], bands apart"]


def test_draws_that_share_most_of_their_images_are_pointed_out() -> None:
    """A source that is hardly larger than its draws makes bands too narrow, and a remark says so of it alone."""
    (said,) = (line for line in remarks(_found()) if "share" in line)
    assert said.startswith("Two draws of 256 images from the 300 of own share 85.0 % of them on average")
