"""``clipq score --shifted`` and ``--counter``: robustness from files alone, equal to the formulas, refused where nothing can be paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipq.cli.main import main

SHARES = {"known": (0.8, 0.7), "shifted": (0.5, 0.45), "counter": (0.6, 0.3)}  # right answers of the baseline and of the engine
SIZES = {"known": 300, "shifted": 200, "counter": 150}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write engine and baseline for three sets, exactly so many answers right."""
    folder, rng = tmp_path_factory.mktemp("stored"), np.random.default_rng(0)
    for name, shares in SHARES.items():
        n = SIZES[name]
        labels = np.arange(n) % 4
        for who, share in zip(("fp32", "int8"), shares, strict=True):
            right = rng.permutation(n) < round(share * n)
            predictions = np.where(right, labels, (labels + 1) % 4)
            rows = "\n".join(f"{label},{guess},0.5" for label, guess in zip(labels, predictions, strict=True))
            (folder / f"{who}-{name}.csv").write_text(f"true_label,pred_label,confidence\n{rows}\n")
            np.savez(folder / f"{who}-{name}.npz", logits=np.eye(4)[predictions], labels=labels)
    return folder


def _score(folder: Path, capsys: pytest.CaptureFixture[str], *options: str, suffix: str = "csv") -> dict[str, Any]:
    paths = [option if option.startswith("--") else str(folder / f"{option}.{suffix}") for option in options]
    assert main(["score", str(folder / f"int8-known.{suffix}"), *paths, "--resamples", "120", "--json", "-"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


ALL = (
    *("--baseline", "fp32-known", "--shifted", "int8-shifted", "--baseline-shifted", "fp32-shifted"),
    *("--counter", "int8-counter", "--baseline-counter", "fp32-counter"),
)


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_figures_by_hand(files: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure from the shares that were written, whatever the form of the files."""
    result = _score(files, capsys, *ALL, suffix=suffix)
    shift, spurious = result["robustness"]["shift"], result["robustness"]["spurious"]
    odds = 0.5 / 0.5 * (0.7 / 0.3) / (0.8 / 0.2)
    expected = {
        "accuracy_drop": 0.25,
        "relative_loss_known": 0.125,
        "relative_loss_shifted": 0.1,
        "effective_robustness": 0.45 - odds / (1 + odds),
    }
    assert {name: entry["value"] for name, entry in shift.items()} == pytest.approx(expected)
    assert shift["accuracy_drop"]["delta"] == pytest.approx(0.25 - 0.3)
    assert spurious["rsg"]["value"] == pytest.approx((0.7 - 0.3) / 0.7)
    assert spurious["rsg"]["delta"] == pytest.approx((0.7 - 0.3) / 0.7 - (0.8 - 0.6) / 0.8)
    assert spurious["vuln_add"]["value"] == pytest.approx(0.5 - 0.125)
    assert spurious["worst_group"]["value"] <= 0.3
    assert {shift[name]["n"] for name in shift} == {200}
    for entry in (*shift.values(), *spurious.values()):
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
        assert 0 < entry["p_value"] <= 1
    assert set(result["provenance"]["files"]) == {"file", "baseline", "shifted", "baseline_shifted", "counter", "baseline_counter"}


def test_without_a_baseline(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One engine alone has its drop and its gap, and nothing is compared."""
    found = _score(files, capsys, "--shifted", "int8-shifted", "--counter", "int8-counter")["robustness"]
    assert set(found["shift"]) == {"accuracy_drop"}
    assert set(found["spurious"]) == {"rsg", "worst_group"}
    assert found["spurious"]["rsg"]["p_value"] is None
    assert "robustness" not in _score(files, capsys)


def test_table_names_the_axes(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row says its axis; what compares with the baseline has a p-value and no delta."""
    options = [option if option.startswith("--") else str(files / f"{option}.csv") for option in ALL]
    assert main(["score", str(files / "int8-known.csv"), *options, "--resamples", "50"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert rows["shift.accuracy_drop"][1] == "0.2500"
    assert rows["shift.accuracy_drop"][6] == "-0.0500"
    assert rows["shift.relative_loss_known"][1] == "0.1250"
    assert rows["shift.relative_loss_known"][6] == "-"
    assert rows["spurious.relative_loss_counter"][1] == "0.5000"
    assert rows["robustness:"][1:3] == ["FILE", "is"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--shifted", "int8-shifted", "--baseline-shifted", "fp32-shifted"], 2, "--baseline-shifted has no use alone"),
        (["--baseline", "fp32-known", "--baseline-counter", "fp32-counter"], 2, "--baseline-counter has no use alone"),
        (["--baseline", "fp32-known", "--shifted", "int8-shifted", "--baseline-shifted", "fp32-known"], 1, "cannot be paired"),
        (["--shifted", "nowhere"], 2, "no file at"),
    ],
)
def test_files_that_do_not_fit(options: list[str], code: int, words: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the baseline alone, one of other images, and none are told in one line."""
    paths = [option if option.startswith("--") else str(files / f"{option}.csv") for option in options]
    assert main(["score", str(files / "int8-known.csv"), *paths]) == code
    assert words in capsys.readouterr().err
