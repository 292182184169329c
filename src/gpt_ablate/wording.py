"""Findings in words: numbers with the digits that they can bear, and one sentence for each comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comparisons import Comparison


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, zeros at the end kept: 0.10, 5.30, 1,230, 3.55e13."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if not -5 < places < 9:
        return f"{value:.{digits - 1}e}".replace("e+", "e").replace("e-0", "e-")
    return f"{round(value, places):,.{max(0, places)}f}"


def probability(p: float) -> str:
    """ "p < 0.001" or "p = 0.012"."""
    return "p < 0.001" if p < 0.001 else f"p = {min(p, 1.0):.2g}"


def count(n: int, one: str, many: str | None = None) -> str:
    """ "1 run", "2 runs"."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def together(mean: float, interval: tuple[float, float]) -> tuple[str, str, str]:
    """A mean and its interval with the decimals that half the interval's width gives sense to."""
    half = (interval[1] - interval[0]) / 2
    if half == 0:
        return number(mean), number(mean), number(mean)
    power = math.floor(math.log10(half))
    places = -power + (half < 2 * 10**power)  # a first digit of 1 is too coarse alone
    bound = min(abs(bound) for bound in interval)
    while 0 < bound < 0.5 * 10**-places and interval[0] * interval[1] > 0 and places < -power + 3:
        places += 1  # an interval that leaves out 0 must not seem to touch it
    low, middle, high = (_fixed(each, places) for each in (interval[0], mean, interval[1]))
    return middle, low, high


def sentence(comparison: Comparison, primary: bool = True) -> str:
    """What a comparison found, as one sentence that can stand alone."""
    if comparison.statistics is None:
        why = "; to choose a best setting on the other seeds takes two" if comparison.kind == "tuned" else ""
        return f"{_against(comparison)}: nothing can be said, no seed pair is complete{why}."
    if comparison.statistics.interval is None:
        return _single(comparison)
    if comparison.verdict == "negligible":
        return _negligible(comparison)
    return _open(comparison, primary) if comparison.verdict == "no difference shown" else _shown(comparison)


def _shown(comparison: Comparison) -> str:
    mean, low, high = _values(comparison)
    direction = "lower" if mean < 0 else "higher"
    size, near, far = together(abs(mean), (min(abs(low), abs(high)), max(abs(low), abs(high))))
    unit = _unit(comparison)
    assert comparison.p_holm is not None
    return (
        f"{_reaches(comparison)} {size}{unit} {direction} than {_reference(comparison)} (95 % CI {near}{unit} to "
        f"{far}{unit}, {_pairs(comparison)}, Holm-adjusted {probability(comparison.p_holm)})."
    )


def _open(comparison: Comparison, primary: bool) -> str:
    values = _values(comparison)
    mean, low, high = together(values[0], values[1:])
    unit, metric = _unit(comparison), "" if primary else f" in {comparison.metric.name}"
    what = "interaction" if comparison.kind == "interaction" else "difference"
    adjusted = ""
    if values[1] * values[2] > 0 and comparison.p_holm is not None:
        adjusted = f", Holm-adjusted {probability(comparison.p_holm)}"
    seen = ""
    if comparison.detectable:
        least = number(comparison.metric.scaled(comparison.detectable) * _factor(comparison), 2)
        pairs = count(len(comparison.seeds), "pair")
        seen = f"; with {pairs} a difference of {least}{unit} would have been seen with probability 0.8"
    return (
        f"{_against(comparison)}: no {what}{metric} could be shown: {mean}{unit} (95 % CI {low}{unit} to "
        f"{high}{unit}, {_pairs(comparison)}{adjusted}){seen}."
    )


def _negligible(comparison: Comparison) -> str:
    values = _values(comparison)
    mean, low, high = together(values[0], values[1:])
    unit = _unit(comparison)
    assert comparison.margin is not None
    margin = f"{comparison.margin * _factor(comparison):g}{unit}"
    return (
        f"{_against(comparison)}: the difference in {comparison.metric.name} is negligible: {mean}{unit} (95 % CI "
        f"{low}{unit} to {high}{unit}, {_pairs(comparison)}), inside the declared margin of {margin}."
    )


def _single(comparison: Comparison) -> str:
    (difference,) = comparison.differences
    value = comparison.metric.scaled(difference) * _factor(comparison)
    size = f"{number(abs(value))}{_unit(comparison)} {'lower' if value < 0 else 'higher'} than"
    compared = "equal to that of" if value == 0 else size
    return (
        f"{_reaches(comparison)} {compared} {_reference(comparison)} in the one seed pair there is "
        f"(seed {comparison.seeds[0]}); one pair gives no interval, so it shows no difference."
    )


def _reaches(comparison: Comparison) -> str:
    verb = "reaches" if comparison.metric.scale == "difference" else "has"
    subject = comparison.label
    if comparison.kind == "tuned":
        subject += " at its best setting"
    if comparison.kind == "interaction":
        subject = f"{_factors(comparison)} together"
        verb = "reach" if verb == "reaches" else "have"
    return f"{subject} {verb} a {comparison.metric.name}"


def _reference(comparison: Comparison) -> str:
    if comparison.kind == "interaction":
        return "the sum of their separate effects gives"
    if comparison.kind == "tuned":
        return f"{comparison.reference} at its best"
    averaged = f", averaged over {listed(comparison.over)}" if comparison.over else ""
    return comparison.reference + averaged


def _against(comparison: Comparison) -> str:
    if comparison.kind == "interaction":
        return f"{_factors(comparison)} together, against the sum of their separate effects"
    best = ", each at its best setting" if comparison.kind == "tuned" else ""
    averaged = f", averaged over {listed(comparison.over)}" if comparison.over else ""
    return f"{comparison.label} against {comparison.reference}{best}{averaged}"


def _factors(comparison: Comparison) -> str:
    return comparison.label.replace(" x ", " and ")


def _values(comparison: Comparison) -> tuple[float, float, float]:
    """Mean and interval in the metric's own terms; percent for ratios."""
    assert comparison.statistics is not None
    assert comparison.statistics.interval is not None
    low, high = (comparison.metric.scaled(bound) * _factor(comparison) for bound in comparison.statistics.interval)
    return comparison.metric.scaled(comparison.statistics.mean) * _factor(comparison), low, high


def _factor(comparison: Comparison) -> int:
    return 100 if comparison.metric.scale == "ratio" else 1


def _unit(comparison: Comparison) -> str:
    return " %" if comparison.metric.scale == "ratio" else ""


def _pairs(comparison: Comparison) -> str:
    return count(len(comparison.seeds), "seed pair")


def _fixed(value: float, places: int) -> str:
    text = f"{round(value, places):,.{max(0, places)}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text
