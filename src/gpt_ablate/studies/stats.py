"""What can be concluded from a few runs: pure functions on arrays, scipy and statsmodels underneath.

One number per run is an observation; runs of two cells that share a seed are a pair (Bouthillier et al. 2021,
arXiv 2103.03098, vary initialisation, order and dropout together, as a seed does here).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats
from scipy.optimize import brentq

Verdict = Literal["better", "worse", "no difference shown", "negligible"]
Setting = TypeVar("Setting", bound=Hashable)
Floats = npt.NDArray[np.float64]

LEAST_FOR_BCA = 30
"""Below, a BCa bootstrap interval covers too little (benchmarks/coverage.md)."""
_RESAMPLES = 9_999
MOST_PAIRS = 1_000_000


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of n values; None where n does not allow them."""

    n: int
    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of n paired differences, with its intervals and the p-value of no difference."""

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    bca: tuple[float, float] | None
    p: float | None


def summarise(values: Iterable[float]) -> Summary:
    """n, mean and sd of `values`. Raises ValueError if one is not finite."""
    array = _finite(values)
    n = len(array)
    return Summary(n, float(array.mean()) if n else None, float(array.std(ddof=1)) if n > 1 else None)


def paired(differences: Iterable[float], confidence: float = 0.95) -> Difference:
    """The mean of paired differences with Student's t interval and test, from n = 30 a BCa bootstrap beside it.

    One pair has no interval and no test. Differences that are all equal leave no doubt: an
    interval of no width, p = 1 if they are 0 and 0 if not.
    BCa: Efron 1987, "Better bootstrap confidence intervals"; its resamples are the same each time.

    Raises ValueError if there is no difference or one is not finite.
    """
    array = _finite(differences)
    n = len(array)
    if n == 0:
        raise ValueError("no differences")
    mean = float(array.mean())
    if n == 1:
        return Difference(1, mean, None, None, None, None)
    if np.ptp(array) == 0:
        same = float(array[0])
        return Difference(n, same, 0.0, (same, same), None, 1.0 if same == 0 else 0.0)
    test = scipy_stats.ttest_1samp(array, 0.0)
    interval = test.confidence_interval(confidence)
    return Difference(
        n,
        mean,
        float(array.std(ddof=1)),
        (float(interval.low), float(interval.high)),
        _bca(array, confidence) if n >= LEAST_FOR_BCA else None,
        float(test.pvalue),
    )


def sd_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Chi-square interval of the standard deviation that normal `values` come from; None for fewer than two."""
    array = _finite(values)
    if len(array) < 2:
        return None
    freedom = len(array) - 1
    squares = freedom * float(array.var(ddof=1))
    tail = (1 - confidence) / 2
    high, low = scipy_stats.chi2.ppf([tail, 1 - tail], freedom)
    return math.sqrt(squares / low), math.sqrt(squares / high)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (Holm 1979) of one family; a None is no member of it and stays None."""
    from statsmodels.stats.multitest import multipletests

    tested = [p for p in p_values if p is not None]
    if not tested:
        return list(p_values)
    adjusted = iter(multipletests(tested, method="holm")[1])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def power(n: int, difference: float, sd: float, alpha: float = 0.05) -> float:
    """Probability that n pairs, whose differences have this mean and sd, show one in a two-sided t test."""
    if sd == 0:
        return 0.0 if difference == 0 else 1.0
    return _power(n, abs(difference) / sd, alpha)


def detectable(n: int, sd: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The least difference that n pairs show with probability `power`; None for fewer than two pairs."""
    return None if n < 2 else sd * _detectable(n, power, alpha)


@cache
def _detectable(n: int, power: float, alpha: float) -> float:
    """In standard deviations; the same for all comparisons of a family that have so many pairs."""
    high = 1.0
    while _power(n, high, alpha) < power:
        high *= 2
    return float(brentq(lambda effect: _power(n, effect, alpha) - power, 0.0, high))


def pairs_needed(difference: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """The least number of pairs, two at least, that shows such a difference with probability `power`.

    A million where more than that would be needed.

    Raises ValueError for a difference of 0, which no number of pairs shows.
    """
    if difference == 0:
        raise ValueError("no number of pairs shows a difference of 0")
    if sd == 0:
        return 2
    effect = abs(difference) / sd
    low, high = 1, 2
    while _power(high, effect, alpha) < power:
        low, high = high, 2 * high
        if high > MOST_PAIRS:
            return MOST_PAIRS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, effect, alpha) >= power else (middle, high)
    return high


def _power(n: int, effect: float, alpha: float) -> float:
    """From the noncentral t distribution; `effect` in standard deviations.

    Not statsmodels' TTestPower: it gives NaN for large effects, and its solver stops at 10 sd.
    """
    freedom, shift = n - 1, effect * math.sqrt(n)
    critical = scipy_stats.t.isf(alpha / 2, freedom)
    beyond = scipy_stats.nct.sf(critical, freedom, shift)
    opposite = scipy_stats.nct.cdf(-critical, freedom, shift)  # NaN where it is too small to compute
    return float(beyond) + (0.0 if math.isnan(opposite) else float(opposite))


def verdict(
    difference: Difference,
    p_holm: float | None,
    margin: float | None,
    lower_is_better: bool = True,
    alpha: float = 0.05,
) -> Verdict:
    """What a difference from the reference amounts to.

    Negligible if its interval lies inside the margin, whatever p (equivalence by the interval:
    Lakens 2017, at the interval's own confidence); better or worse if the adjusted p is below
    alpha; else no difference is shown.
    """
    if difference.interval is None or p_holm is None:
        return "no difference shown"
    low, high = difference.interval
    if margin is not None and -margin <= low and high <= margin:
        return "negligible"
    if p_holm >= alpha:
        return "no difference shown"
    return "better" if (difference.mean < 0) == lower_is_better else "worse"


def tuned(losses: Mapping[Setting, Mapping[int, float]]) -> dict[int, tuple[Setting, float]]:
    """For each seed the setting that the other seeds find best, and its loss at this seed.

    So the loss is not the luckiest of several: the seed it is read at had no part in the choice.
    A setting takes part for a seed if it has that seed and at least one other.
    """
    found = {}
    for seed in sorted({seed for runs in losses.values() for seed in runs}):
        means = {
            setting: float(np.mean([loss for other, loss in runs.items() if other != seed]))
            for setting, runs in losses.items()
            if seed in runs and len(runs) > 1
        }
        if means:
            best = min(means, key=means.__getitem__)
            found[seed] = (best, losses[best][seed])
    return found


def lr_sensitivity(losses: Mapping[float, float], start: float) -> float:
    """Mean over learning rates of the loss above the best; a loss above `start`, that of no training, counts as that.

    Wortsman et al. 2023 (arXiv 2309.14322), section 2.
    """
    capped = [min(loss, start) if math.isfinite(loss) else start for loss in losses.values()]
    return float(np.mean(capped)) - min(capped)


def _finite(values: Iterable[float]) -> Floats:
    array = np.asarray(list(values), dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"not all finite: {array.tolist()}")
    return array


def _bca(array: Floats, confidence: float) -> tuple[float, float]:
    found = scipy_stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=confidence,
        n_resamples=_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
