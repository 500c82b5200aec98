"""Means over data sets: the value, an interval of independent sets, paired differences, and the table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipq.errors import DataError
from clipq.evaluate.data_means import data_means, sets_to_average
from clipq.evaluate.report.data_means import data_mean_tables
from clipq.evaluate.statistics.bootstrap import Resampled, compare, resample_counts
from clipq.evaluate.statistics.data_mean import mean_of_data

RESAMPLES = 400


def _resampled(column: np.ndarray, *, name: str = "set", seed: int = 0, metric: str = "acc1") -> Resampled:
    """Return a metric that is a mean of 0 and 1, as the classification statistics make it."""
    values = column.astype(np.float64)
    draws = np.array([(counts @ values) / len(values) for counts in resample_counts(len(values), RESAMPLES, seed)])
    return Resampled(
        {metric: values.mean()}, {metric: draws}, len(values), (name, RESAMPLES, seed), influence={metric: (values - values.mean(),)}
    )


def _correct(seed: int, n: int = 200, share: float = 0.7) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def test_mean_by_hand() -> None:
    """Every set counts the same, whatever its size; n counts all images."""
    mean = mean_of_data([_resampled(np.array([True, True])), _resampled(np.array([True, False, False, False]))])
    assert mean.values == {"acc1": pytest.approx(0.625)}
    assert mean.n == 6


def test_the_interval_is_that_of_independent_sets() -> None:
    """Two sets with the same rows right would move together if their resamples stayed aligned; the spread must not."""
    same = _correct(0, n=400)
    mean = mean_of_data([_resampled(same), _resampled(same, name="other")])
    expected = same.std() / np.sqrt(len(same)) / np.sqrt(2)
    assert mean.draws["acc1"].std() == pytest.approx(expected, rel=0.12)
    assert _resampled(same).draws["acc1"].std() == pytest.approx(expected * np.sqrt(2), rel=0.12)


def test_engines_stay_paired() -> None:
    """An engine that errs on the same images has no difference in any resample; one that errs once has a narrow one."""
    sets = [_correct(seed) for seed in range(3)]
    baseline = mean_of_data([_resampled(own, name=str(place)) for place, own in enumerate(sets)])
    assert compare(baseline, baseline)["acc1"].delta_ci95 == (0.0, 0.0)
    changed = [own.copy() for own in sets]
    changed[1][:2] = ~changed[1][:2]
    entry = compare(baseline, mean_of_data([_resampled(own, name=str(place)) for place, own in enumerate(changed)]))["acc1"]
    assert entry.delta == pytest.approx(np.mean([own.mean() for own in changed]) - np.mean([own.mean() for own in sets]))
    assert entry.ci95 is not None
    assert entry.delta_ci95 is not None
    assert entry.delta_ci95[1] - entry.delta_ci95[0] < (entry.ci95[1] - entry.ci95[0]) / 3
    assert entry.test == "bootstrap"


@given(st.permutations(range(4)), st.integers(0, 1000))
def test_the_order_of_the_sets_does_not_move_the_value(order: list[int], seed: int) -> None:
    """The value is the same in any order, and so is the sum of squares of the influence."""
    parts = [_resampled(_correct(place, n=20 + place), name=str(place)) for place in range(4)]
    one, two = mean_of_data(parts, seed=seed), mean_of_data([parts[place] for place in order], seed=seed)
    assert one.values["acc1"] == pytest.approx(two.values["acc1"])
    squares = [sum((part**2).sum() for part in mean.influence["acc1"]) for mean in (one, two)]
    assert squares[0] == pytest.approx(squares[1])


def test_one_set_is_its_own_mean() -> None:
    """Value, spread and n stay."""
    own = _resampled(_correct(3))
    mean = mean_of_data([own])
    assert (mean.values, mean.n) == (own.values, own.n)
    assert np.sort(mean.draws["acc1"]).tolist() == np.sort(own.draws["acc1"]).tolist()


def test_what_cannot_be_averaged() -> None:
    """No set, other numbers of resamples, and metrics that a set lacks."""
    with pytest.raises(DataError, match="needs some"):
        mean_of_data([])
    short = Resampled({"acc1": 0.5}, {"acc1": np.zeros(3)}, 10, ("x", 3, 0))
    with pytest.raises(DataError, match="differently often"):
        mean_of_data([short, _resampled(_correct(0))])
    assert mean_of_data([_resampled(_correct(0)), _resampled(_correct(1), metric="nll")]).values == {}


def test_altered_sets_do_not_count() -> None:
    """What shows the same things as another set is left out, and one set alone has no mean."""
    assert sets_to_average(["a", "b", "b-noise"], {"b-noise"}) == ["a", "b"]
    assert sets_to_average(["b", "b-noise"], {"b-noise"}) == []
    assert data_means({}, [], seed=0) == {}


def test_the_report_has_a_table_of_means() -> None:
    """One row per engine, differences with their p-value, the sets named in the note."""
    parts = {engine: {data: _resampled(_correct(seed), name=data) for data in ("a", "b")} for seed, engine in enumerate(("one", "two"))}
    means = data_means(parts, ["a", "b"], seed=0)
    assert means["data"] == ["a", "b"]
    entry = means["results"]["two"]["acc1"]
    assert entry["delta"] == pytest.approx(_correct(1).mean() - _correct(0).mean())
    assert entry["p_value_holm"] == entry["p_value"]
    assert means["results"]["one"]["acc1"]["delta"] is None
    (table,) = data_mean_tables({"means": means})
    assert (table.title, table.note, [head for head, _ in table.rows]) == ("Mean of 2 data sets", "a, b.", ["one", "two"])
    assert data_mean_tables({}) == []
