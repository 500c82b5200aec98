"""What --max-drop may say, and what the calibration data must have for it: told before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clipq.calib_data.table import open_source
from clipq.errors import UsageError
from clipq.export.keep import NEEDS, Bound, check_asked, parse_bounds
from clipq.export.pipeline import export_bundle
from clipq.recipe import Recipe

LABELLED, UNLABELLED, OOD = "synthetic:scenes:calibration", "synthetic:scenes-far", "synthetic:scenes-near"
RECIPE = Recipe("demo:under", ("ort-int8-static",), calib=LABELLED)


def test_bounds_are_read_in_order() -> None:
    """Each is a metric and a fraction, 0 included, and reads back as it was written."""
    bounds = parse_bounds(["acc1=0.01", " fpr95 = 0 ", "cosine_centred=2e-3"])
    assert bounds == (Bound("acc1", 0.01), Bound("fpr95", 0.0), Bound("cosine_centred", 0.002))
    assert list(map(str, bounds)) == ["acc1=0.01", "fpr95=0", "cosine_centred=0.002"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acc1", "expected METRIC=VALUE, e.g. acc1=0.01"),
        ("", "cannot read --max-drop ''"),
        ("=0.1", "unknown metric of --max-drop ''"),
        ("acc=0.01", "Did you mean 'acc1'?"),
        ("disagrement=0.01", "Did you mean 'disagreement'?"),
        ("fpr95_id_pos=0.01", "Did you mean 'fpr95'?"),
        ("acc1=", "found ''"),
        ("acc1=much", "found 'much'"),
        ("acc1=1%", "found '1%'"),
        ("acc1=-0.01", "expected a fraction from 0 to below 1"),
        ("acc1=1", "expected a fraction from 0 to below 1"),
        ("acc1=nan", "found 'nan'"),
        ("acc1=inf", "found 'inf'"),
        ("acc1=0.1=0.2", "found '0.1=0.2'"),
    ],
)
def test_a_bound_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    """One line names what was found and what was expected."""
    with pytest.raises(UsageError) as raised:
        parse_bounds([text])
    assert message in str(raised.value)


def test_a_metric_has_one_bound() -> None:
    """Two bounds of one metric contradict each other or say the same."""
    with pytest.raises(UsageError, match="names acc1 twice"):
        parse_bounds(["acc1=0.01", "ece15=0.01", "acc1=0.02"])


@pytest.mark.parametrize(
    ("calib", "change", "message"),
    [
        (LABELLED, {"max_drop": ("fpr95=0.01",)}, "Name some with --calib-ood"),
        (LABELLED, {"max_drop": ("fpr95=0.01",), "calib_ood": LABELLED}, "by --calib and by --calib-ood"),
        (LABELLED, {"calib_ood": OOD}, "nothing uses the images of --calib-ood"),
        (LABELLED, {"sensitivity": True, "engines": ("ort-fp32", "ort-int8-dynamic")}, "static INT8, which no engine here has"),
        (LABELLED, {"sensitivity": True, "engines": ("trt-fp8",)}, "static INT8, which no engine here has"),
        (UNLABELLED, {"max_drop": ("cosine=0.01", "disagreement=0.01")}, "no class names"),
        (UNLABELLED, {"max_drop": ("fpr95=0.01",), "calib_ood": OOD}, "no class names"),
        *((UNLABELLED, {"max_drop": (f"{metric}=0.01",)}, "Bound cosine") for metric in ("flips", "acc1", "ece15")),
    ],
)
def test_data_that_cannot_answer_is_refused(calib: str, change: dict[str, object], message: str) -> None:
    """Whatever a bound needs and the data lacks is told at once, with the way out."""
    with pytest.raises(UsageError, match=message):
        check_asked(replace(RECIPE, calib=calib, **change), open_source(calib))


def test_classes_without_labels_allow_disagreement() -> None:
    """Predictions need class names only; right and wrong need labels."""

    class Nameless:
        """The labelled scenes with every second label missing."""

        def __init__(self) -> None:
            source = open_source(LABELLED)
            self.id, self.classnames, self.labels = source.id, source.classnames, source.labels.copy()
            self.labels[::2] = -1

    source = Nameless()
    check_asked(replace(RECIPE, max_drop=("disagreement=0.01", "cosine=0.01")), source)
    with pytest.raises(UsageError, match="images without a label"):
        check_asked(replace(RECIPE, max_drop=("flips=0.01",)), source)


def test_everything_can_be_asked_of_labelled_data_with_ood_images() -> None:
    """The whole vocabulary at once, and the ranking alone without any of it."""
    check_asked(replace(RECIPE, max_drop=tuple(f"{metric}=0.01" for metric in NEEDS), calib_ood=OOD), open_source(LABELLED))
    check_asked(replace(RECIPE, sensitivity=True), open_source(UNLABELLED))
    check_asked(RECIPE, open_source(LABELLED))


def test_an_export_tells_before_it_begins(tmp_path: Path) -> None:
    """No folder is made and no checkpoint loaded: this model does not even exist."""
    (tmp_path / "model").mkdir()
    with pytest.raises(UsageError, match="--max-drop acc1 has no usable value"):
        export_bundle(replace(RECIPE, model=f"local-dir:{tmp_path / 'model'}", max_drop=("acc1=1.5",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bound_without_a_search_is_refused(tmp_path: Path) -> None:
    """A caller who forgets to hand in the search gets an error, not an engine that ignores the bound."""
    with pytest.raises(UsageError, match="a search that was not handed in"):
        export_bundle(replace(RECIPE, max_drop=("acc1=0.01",)), tmp_path / "out")
