"""McNemar, Holm and the smallest detectable loss against scipy, published examples and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from clipq.errors import DataError
from clipq.evaluate.statistics.significance import holm, mcnemar, minimum_detectable_loss


def _flags(lost, won, both=3):
    before = np.array([1] * lost + [0] * won + [1] * both)
    return before, np.array([0] * lost + [1] * won + [1] * both)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_scipy(lost, won):
    """The exact test is scipy's binomial test; the mid-p takes off the probability of the observed outcome."""
    exact = binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    observed = binom.pmf(min(lost, won), lost + won, 0.5)
    assert mcnemar(*_flags(lost, won), mid_p=False) == pytest.approx(exact, abs=1e-12)
    assert mcnemar(*_flags(lost, won)) == pytest.approx(1.0 if lost == won else exact - observed, abs=1e-12)


def test_mcnemar_by_hand():
    """10 lost, 2 won: (1 + 12 + 66) / 4096 twice, and 66 / 4096 less as mid-p; direction does not matter."""
    assert mcnemar(*_flags(10, 2), mid_p=False) == pytest.approx(2 * 79 / 4096)
    assert mcnemar(*_flags(10, 2)) == pytest.approx((2 * 79 - 66) / 4096)
    assert mcnemar(*_flags(2, 10)) == mcnemar(*_flags(10, 2))


def test_mcnemar_stays_exact_for_many_samples():
    """5,000 discordant samples are no problem, and equal answers have p = 1."""
    assert mcnemar(*_flags(2600, 2400), mid_p=False) == pytest.approx(binomtest(2600, 5000).pvalue, rel=1e-9)
    assert mcnemar(np.ones(5), np.ones(5)) == 1.0


def test_holm_by_hand_and_in_order():
    """Holm 1979: the smallest times m, the next times m - 1, never falling, never above 1, names in the given order."""
    corrected = holm({"b": 0.04, "a": 0.01, "d": 0.5, "c": 0.03})
    assert list(corrected) == ["b", "a", "d", "c"]
    assert corrected == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5})
    assert holm({}) == {}


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_and_bonferroni(p_values):
    """Never below the raw p-value, never above Bonferroni's."""
    for name, value in holm(p_values).items():
        assert p_values[name] <= value <= min(1.0, len(p_values) * p_values[name])


def test_the_detectable_loss_is_detected_at_its_power():
    """Simulated engines that lose exactly that much are found in about 80 of 100 comparisons."""
    n, psi = 4000, 0.05
    loss = minimum_detectable_loss(n, psi)
    rng = np.random.default_rng(0)
    discordant = rng.multinomial(n, [(psi + loss) / 2, (psi - loss) / 2, 1 - psi], size=400)
    found = np.mean([mcnemar(*_flags(int(lost), int(won), both=0)) < 0.05 for lost, won, _ in discordant])
    assert found == pytest.approx(0.8, abs=0.07)


def test_small_samples_claim_little():
    """More samples or fewer changes show smaller losses; no observed change at n = 100 does not mean that none is possible."""
    assert minimum_detectable_loss(1000, 0.03) > minimum_detectable_loss(10_000, 0.03) > minimum_detectable_loss(10_000, 0.01)
    assert minimum_detectable_loss(100, 0.0) >= 0.03
    assert minimum_detectable_loss(3, 0.0) == 1.0
    assert minimum_detectable_loss(4000, 0.0) == pytest.approx((1.959964 + 0.841621) ** 2 / 4000, rel=2e-3), "all disagreement one way"
    assert minimum_detectable_loss(4000, 0.0008) == pytest.approx(minimum_detectable_loss(4000, 0.0), rel=1e-9)


@given(st.integers(4, 10**6), st.floats(0, 1))
def test_what_would_show_is_continuous_and_possible(n, psi):
    """A difference never needs less disagreement than itself, and a little more disagreement changes it little."""
    loss = minimum_detectable_loss(n, psi)
    assert 0 < loss <= 1
    assert loss <= max(psi, 3 / n, (1.96 + 0.8417) ** 2 / n)
    assert minimum_detectable_loss(n, min(1.0, psi * 1.0001)) == pytest.approx(loss, rel=0.02)


def test_simulated_power_without_observed_disagreement():
    """With all disagreement one way the promised loss is found in about four of five repetitions."""
    n = 4000
    loss = minimum_detectable_loss(n, 0.0)
    lost = np.random.default_rng(0).binomial(n, loss, size=600)
    found = np.mean([mcnemar(*_flags(int(count), 0)) < 0.05 for count in lost])
    assert found == pytest.approx(0.8, abs=0.12)


def test_empty_comparisons_are_errors():
    """Nothing can be said of no sample."""
    with pytest.raises(DataError, match="found n = 0"):
        minimum_detectable_loss(0, 0.1)
