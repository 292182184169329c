"""Statistics against scipy and statsmodels, and their promises by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from gpt_ablate.studies import curves, effects, stats
from gpt_ablate.studies.stats import Difference

DRAWS = 2_000
VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.fixture(autouse=True, scope="module")
def no_collecting() -> Iterator[None]:
    """multipletests collects garbage at every call, which takes a thousand times as long as the rest of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: 0)
        yield


@given(VALUES)
@settings(deadline=None)
def test_the_paired_difference_is_scipys_t_test(values: list[float]) -> None:
    found = stats.paired(values)
    if np.ptp(values) < 1e-6:  # scipy warns of lost precision there
        return
    first, second = np.array(values) + 7, np.full(len(values), 7.0)
    test = scipy_stats.ttest_rel(first, second)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6, abs=1e-12)
    expected = scipy_stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy_stats.sem(values))
    assert found.interval == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert (found.n, found.mean) == (len(values), pytest.approx(np.mean(values), abs=1e-9))
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=1e-9)


def test_few_or_equal_differences() -> None:
    assert stats.paired([0.5]) == Difference(1, 0.5, None, None, None, None)
    assert stats.paired([0.0] * 4) == Difference(4, 0.0, 0.0, (0.0, 0.0), None, 1.0)
    assert stats.paired([-0.1] * 3) == Difference(3, -0.1, 0.0, (-0.1, -0.1), None, 0.0)
    assert stats.summarise([]) == stats.Summary(0, None, None)
    assert stats.summarise([2.0]) == stats.Summary(1, 2.0, None)
    assert stats.summarise([1.0, 3.0]) == stats.Summary(2, 2.0, math.sqrt(2))
    assert stats.sd_interval([1.0]) is None
    for function in (stats.paired, stats.summarise, stats.sd_interval):
        with pytest.raises(ValueError, match="finite"):
            function([1.0, math.nan])
    with pytest.raises(ValueError, match="no differences"):
        stats.paired([])


def test_the_bootstrap_stands_beside_the_interval_from_thirty_pairs() -> None:
    values = np.random.default_rng(5).lognormal(size=30)
    assert stats.paired(values[:29]).bca is None
    low, high = stats.paired(values).bca
    assert stats.paired(values).bca == (low, high)
    reference = scipy_stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(8)
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), rel=0.03)
    assert low > stats.paired(values).interval[0]  # it follows the skew


@pytest.mark.parametrize("n", [3, 5, 10, 30])
@pytest.mark.fast_cases(1)
def test_the_interval_covers_what_it_says_for_normal_draws(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_bca", lambda *_: None)  # stands beside the interval; 2,000 of them take minutes
    draws = np.random.default_rng(n).normal(0.3, 2.0, (DRAWS, n))
    intervals = [stats.paired(row).interval for row in draws]
    covered = np.mean([low <= 0.3 <= high for low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_of_a_standard_deviation_covers(n: int) -> None:
    draws = np.random.default_rng(n).normal(0, 2.0, (DRAWS, n))
    covered = np.mean([low <= 2.0 <= high for low, high in map(stats.sd_interval, draws)])
    assert covered == pytest.approx(0.95, abs=0.015)


@given(P_VALUES)
@settings(deadline=None)
def test_holm_is_statsmodels_and_passes_over_what_was_not_tested(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]
    assert stats.holm(p_values) == pytest.approx(list(expected))
    with_gap = [None, *p_values, None]
    assert stats.holm(with_gap)[1:-1] == stats.holm(p_values)
    assert stats.holm([None]) == [None]
    assert all(adjusted >= p for adjusted, p in zip(stats.holm(p_values), p_values, strict=True))


@pytest.mark.parametrize("n", [3, 5])
def test_under_the_null_a_family_errs_in_one_of_twenty(n: int) -> None:
    """Six cells against one baseline, nothing to find: at most 5 % of studies show something."""
    draws = np.random.default_rng(n).normal(size=(DRAWS, 7, n))
    differences = draws[:, 1:] - draws[:, :1]
    p_values = scipy_stats.ttest_1samp(differences, 0, axis=-1).pvalue
    assert stats.paired(differences[0, 0]).p == pytest.approx(p_values[0, 0])
    wrong = np.mean([min(stats.holm(list(family))) < 0.05 for family in p_values])
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / DRAWS)


@pytest.mark.parametrize(("n", "difference", "sd"), [(3, 1.0, 0.5), (5, 0.3, 0.4), (20, 0.1, 0.2)])
def test_power_is_how_often_it_is_seen(n: int, difference: float, sd: float) -> None:
    claimed = stats.power(n, difference, sd)
    draws = np.random.default_rng(n).normal(difference, sd, (4 * DRAWS, n))
    seen = np.mean(scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    assert claimed == pytest.approx(seen, abs=0.02)
    assert stats.power(n, -difference, sd) == claimed


@given(st.integers(2, 50), st.floats(0.01, 10))
@settings(deadline=None, max_examples=30)
def test_the_detectable_difference_has_the_power_asked_for(n: int, sd: float) -> None:
    least = stats.detectable(n, sd)
    assert stats.power(n, least, sd) == pytest.approx(0.8, abs=1e-6)
    if n > 3:  # at few pairs the effect is more than statsmodels can compute
        assert TTestPower().power(least / sd, n, 0.05) == pytest.approx(0.8, abs=1e-4)
    assert stats.detectable(n, sd, alpha=0.01) > least
    assert stats.detectable(1, sd) is None


@given(st.floats(0.05, 5))
@settings(deadline=None, max_examples=30)
def test_the_pairs_needed_are_the_least_that_have_the_power(ratio: float) -> None:
    n = stats.pairs_needed(ratio, 1.0)
    assert stats.power(n, ratio, 1.0) >= 0.8
    assert n == 2 or stats.power(n - 1, ratio, 1.0) < 0.8
    assert stats.pairs_needed(-3 * ratio, 3.0) == n


@pytest.mark.parametrize("effect", [0.0, 0.1, 1.0, 5.0, 30.0, 1e3])
@pytest.mark.parametrize("n", [2, 3, 9, 30, 1000])
def test_power_is_a_probability_that_grows(n: int, effect: float) -> None:
    assert 0 <= stats.power(n, effect, 1.0) <= 1 + 1e-12
    assert stats.power(n, 1.1 * effect, 1.0) >= stats.power(n, effect, 1.0) - 1e-12
    if effect == 0:
        assert stats.power(n, effect, 1.0) == pytest.approx(0.05)


def test_pairs_needed_at_the_edges() -> None:
    assert stats.pairs_needed(0.1, 0.0) == 2
    assert stats.pairs_needed(1e-9, 1.0) == 1_000_000
    with pytest.raises(ValueError, match="0"):
        stats.pairs_needed(0.0, 1.0)


@pytest.mark.parametrize(
    ("mean", "interval", "p", "expected"),
    [
        (-0.3, (-0.4, -0.2), 0.001, "better"),
        (0.3, (0.2, 0.4), 0.001, "worse"),
        (0.3, (0.2, 0.4), 0.06, "no difference shown"),
        (0.01, (-0.4, 0.42), 0.9, "no difference shown"),
        (0.02, (0.01, 0.03), 0.001, "negligible"),
        (0.04, (0.03, 0.051), 0.001, "worse"),
        (0.3, None, None, "no difference shown"),
    ],
)
def test_verdicts(mean: float, interval: tuple[float, float] | None, p: float | None, expected: str) -> None:
    difference = Difference(5, mean, 0.1, interval, None, p)
    assert stats.verdict(difference, p, 0.05) == expected
    swapped = {"better": "worse", "worse": "better"}
    assert stats.verdict(difference, p, 0.05, lower_is_better=False) == swapped.get(expected, expected)
    if expected == "negligible":
        assert stats.verdict(difference, p, None) == "worse"


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 2), (2, 3, 2)])
def test_factorial_effects_are_those_of_least_squares(shape: tuple[int, ...]) -> None:
    draws = np.random.default_rng(len(shape))
    names = "abc"[: len(shape)]
    factors = {name: [f"{name}{i}" for i in range(n)] for name, n in zip(names, shape, strict=True)}
    cells = list(itertools.product(*factors.values()))
    losses = {cell: {seed: float(draws.normal()) for seed in range(4)} for cell in cells}
    losses[cells[0]][9] = 100.0  # a seed that one cell alone has is no block
    rows = [dict(zip(names, cell, strict=True)) | {"y": losses[cell][seed]} for cell in cells for seed in range(4)]
    data = {key: [row[key] for row in rows] for key in (*names, "y")}
    fit = smf.ols("y ~ " + " * ".join(f"C({name}, Sum)" for name in names), pd.DataFrame(data)).fit()
    assert len(effects.factorial_effects(losses, factors)) == sum(n - 1 for n in shape) + sum(
        (a - 1) * (b - 1) for a, b in itertools.combinations(shape, 2)
    )
    for effect in effects.factorial_effects(losses, factors):
        contrast = 0.0
        for taken in itertools.product((0, 1), repeat=len(effect.factors)):
            fixed = {
                factor: (effect.references, effect.levels)[take][i]
                for i, (factor, take) in enumerate(zip(effect.factors, taken, strict=True))
            }
            inside = [cell for cell in cells if all(cell[names.index(f)] == level for f, level in fixed.items())]
            grid = {name: [cell[i] for cell in inside] for i, name in enumerate(names)}
            contrast += (-1) ** taken.count(0) * float(np.mean(fit.predict(pd.DataFrame(grid))))
        assert effect.difference.mean == pytest.approx(contrast, abs=1e-9)
        assert effect.difference.n == 4
    if shape == (2, 2, 2):
        main, *_, interaction = effects.factorial_effects(losses, factors)
        assert main.difference.mean == pytest.approx(-2 * fit.params["C(a, Sum)[S.a0]"])
        assert interaction.factors == ("b", "c")
        assert interaction.difference.mean == pytest.approx(4 * fit.params["C(b, Sum)[S.b0]:C(c, Sum)[S.c0]"])


def test_an_incomplete_factorial_study_is_refused() -> None:
    factors = {"a": ["x", "y"], "b": ["u", "v"]}
    losses = {cell: {0: 1.0, 1: 2.0} for cell in itertools.product("xy", "uv")}
    with pytest.raises(ValueError, match="no runs for"):
        effects.factorial_effects({cell: losses[cell] for cell in list(losses)[:3]}, factors)
    with pytest.raises(ValueError, match="no seed"):
        effects.factorial_effects(losses | {("x", "u"): {7: 1.0}}, factors)


def test_a_setting_is_chosen_by_the_other_seeds() -> None:
    losses = {"low": {0: 1.0, 1: 5.0, 2: 1.2}, "high": {0: 2.0, 1: 0.0, 2: 2.0}, "once": {0: -9.0}}
    # Without seed 0: low 3.1, high 1.0. Without seed 1: low 1.1, high 2.0. Without seed 2: low 3.0, high 1.0.
    assert stats.tuned(losses) == {0: ("high", 2.0), 1: ("low", 5.0), 2: ("high", 2.0)}
    assert stats.tuned({"only": {0: 1.0}}) == {}


def test_choosing_by_the_other_seeds_favours_no_one() -> None:
    """Settings that do not differ: their tuned loss is the mean of all, not the luckiest of them."""
    draws = np.random.default_rng(1).normal(size=(DRAWS, 4, 3))
    tuned = [
        loss
        for study in draws
        for _, loss in stats.tuned({i: dict(enumerate(row)) for i, row in enumerate(study)}).values()
    ]
    assert np.mean(tuned) == pytest.approx(0, abs=0.04)
    assert np.mean(draws.min(axis=1)) < -0.9


def test_learning_rate_sensitivity() -> None:
    losses = {1e-4: 3.0, 1e-3: 2.0, 1e-2: 50.0, 1e-1: math.inf}
    assert stats.lr_sensitivity(losses, start=10.0) == pytest.approx((3 + 2 + 10 + 10) / 4 - 2)


def test_the_loss_at_a_budget() -> None:
    spent, losses = [10.0, 20.0, 40.0], [4.0, 3.0, 1.0]
    assert [curves.at_budget(spent, losses, at) for at in (10, 15, 30, 40)] == [4.0, 3.5, 2.0, 1.0]
    assert curves.at_budget(spent, losses, 9.9) is None
    assert curves.at_budget(spent, losses, 40.1) is None
    assert curves.at_budget([], [], 1.0) is None
