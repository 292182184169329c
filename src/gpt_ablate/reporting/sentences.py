"""Findings in words: numbers with a sensible number of digits, and a statement for each comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt_ablate.config.metrics import BITS

if TYPE_CHECKING:
    from gpt_ablate.config.metrics import Metric
    from gpt_ablate.studies.comparisons import Comparison

MOST_NAMED = 4
"""A statement names at most so many cells."""


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits; zeros at the end are kept: 0.10, 5.30, 1,230, 3.55e13."""
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
    """A mean and the ends of its interval, with as many decimals as half the width of the interval justifies."""
    half = (interval[1] - interval[0]) / 2
    if half == 0:
        return number(mean), number(mean), number(mean)
    power = math.floor(math.log10(half))
    places = -power + (half < 2 * 10**power)  # a first digit of 1 is too coarse alone
    bound = min(abs(bound) for bound in interval)
    while 0 < bound < 0.5 * 10**-places and interval[0] * interval[1] > 0 and places < -power + 3:
        places += 1  # an interval that excludes 0 must not look as if it contained 0
    low, middle, high = (_fixed(each, places) for each in (interval[0], mean, interval[1]))
    return middle, low, high


def sentence(comparison: Comparison) -> str:
    """The finding of a comparison, in words that can stand alone."""
    if comparison.statistics is None:
        why = " The best setting is chosen on the other seeds, so two or more seeds are needed."
        return f"{_against(comparison)}: no seed pair is complete, so there is no result." + (
            why if comparison.kind == "tuned" else ""
        )
    if comparison.statistics.interval is None:
        return _single(comparison)
    if comparison.verdict == "negligible":
        return _negligible(comparison)
    return _open(comparison) if comparison.verdict == "no difference shown" else _shown(comparison)


def token_frequencies_only(metric: Metric, arms: Sequence[Mapping[str, Any]]) -> str | None:
    """Which models have learned at most the token frequencies; None if all have learned more.

    `arms` are those of `summaries.unigram_check`.
    """
    above = [arm for arm in arms if arm["not_below"]]
    if not above:
        return None
    runs, not_below = (sum(arm[key] for arm in arms) for key in ("runs", "not_below"))
    if runs == not_below or len(arms) == 1:
        where = _share(not_below, runs)
    else:
        told = [f"{_share(arm['not_below'], arm['runs'])} of {arm['label']}" for arm in above[:MOST_NAMED]]
        rest = len(above) - MOST_NAMED
        where = listed([*told, f"runs of {count(rest, 'more cell')}"] if rest > 0 else told)
    entropies = sorted({number(arm["unigram_entropy"], 4) for arm in above})
    unit = f"{' or '.join(entropies)} {metric.unit}"
    if metric.split == "validation":
        return (
            f"In {where}, the {metric.name} is not below the unigram entropy of the training split ({unit}; that of "
            "the validation split is not recorded): on new text, such a model may be no better than token frequencies."
        )
    meaning = " A comparison between such models says nothing about trained models." if len(above) > 1 else ""
    return (
        f"In {where}, the {metric.name} is not below the unigram entropy of the training split ({unit}): such a model "
        f"has learned at most the token frequencies.{meaning}"
    )


def _share(part: int, whole: int) -> str:
    """ "all 3 runs", "both runs", "the only run", "2 of 3 runs"."""
    if part < whole:
        return f"{part} of {whole} runs"
    return {1: "the only run", 2: "both runs"}.get(whole, f"all {whole} runs")


def _shown(comparison: Comparison) -> str:
    mean, low, high = _values(comparison)
    direction = "lower" if mean < 0 else "higher"
    size, near, far = together(abs(mean), (min(abs(low), abs(high)), max(abs(low), abs(high))))
    unit = _unit(comparison)
    assert comparison.p_holm is not None
    return (
        f"{_reaches(comparison)} {size}{unit}{_of_loss(comparison)} {direction} than {_reference(comparison)} (95 % CI "
        f"{near}{unit} to {far}{unit}, {_pairs(comparison)}, Holm-adjusted {probability(comparison.p_holm)})."
    )


def _open(comparison: Comparison) -> str:
    values = _values(comparison)
    mean, low, high = together(values[0], values[1:])
    unit, what = _unit(comparison), _what(comparison)
    adjusted = ""
    if values[1] * values[2] > 0 and comparison.p_holm is not None:
        adjusted = f", Holm-adjusted {probability(comparison.p_holm)}"
    power = ""
    if comparison.detectable:
        article = "an" if comparison.kind == "interaction" else "a"
        least = number(comparison.metric.scaled(comparison.detectable) * _factor(comparison), 2)
        power = f" With {_pairs(comparison)}, the test detects {article} {what} of {least}{unit} with power 0.8."
    return (
        f"{_against(comparison)}: no {what} in {comparison.metric.name} was shown. The mean {what} is {mean}{unit}"
        f"{_of_loss(comparison)} (95 % CI {low}{unit} to {high}{unit}, {_pairs(comparison)}{adjusted}).{power}"
    )


def _negligible(comparison: Comparison) -> str:
    values = _values(comparison)
    mean, low, high = together(values[0], values[1:])
    unit, what = _unit(comparison), _what(comparison)
    assert comparison.margin is not None
    margin = f"{comparison.margin * _factor(comparison):g}{unit}"
    return (
        f"{_against(comparison)}: the {what} in {comparison.metric.name} is negligible. The mean {what} is "
        f"{mean}{unit}{_of_loss(comparison)}, and its 95 % CI ({low}{unit} to {high}{unit}, {_pairs(comparison)}) lies "
        f"inside the declared margin of ±{margin}."
    )


def _single(comparison: Comparison) -> str:
    (difference,) = comparison.differences
    value = comparison.metric.scaled(difference) * _factor(comparison)
    unit = f"{_unit(comparison)}{_of_loss(comparison)}"
    size = f"{number(abs(value))}{unit} {'lower' if value < 0 else 'higher'} than"
    compared = "equal to" if value == 0 else size
    return (
        f"{_reaches(comparison)} {compared} {_reference(comparison)} in the only seed pair (seed "
        f"{comparison.seeds[0]}). One pair gives no confidence interval, so no {_what(comparison)} is shown."
    )


def _reaches(comparison: Comparison) -> str:
    if comparison.kind == "interaction":
        return f"{_against(comparison)}: their combined effect on {comparison.metric.name} is"
    verb = "reaches" if comparison.metric.scale == "difference" else "has"
    best = " at its best setting" if comparison.kind == "tuned" else ""
    return f"{comparison.label}{best} {verb} a {comparison.metric.name}"


def _reference(comparison: Comparison) -> str:
    if comparison.kind == "interaction":
        both = "sum" if comparison.metric.scale == "difference" else "product"
        return f"the {both} of their separate effects"
    best = " at its best setting" if comparison.kind == "tuned" else ""
    averaged = f", averaged over {listed(comparison.over)}" if comparison.over else ""
    return f"{comparison.reference}{best}{averaged}"


def _against(comparison: Comparison) -> str:
    if comparison.kind == "interaction":
        return f"Interaction of {comparison.label.replace(' x ', ' and ')}"
    best = ", each at its best setting" if comparison.kind == "tuned" else ""
    averaged = f", averaged over {listed(comparison.over)}" if comparison.over else ""
    return f"{comparison.label} against {comparison.reference}{best}{averaged}"


def _what(comparison: Comparison) -> str:
    return "interaction" if comparison.kind == "interaction" else "difference"


def _values(comparison: Comparison) -> tuple[float, float, float]:
    """Mean and ends of the interval in the metric's own scale; per cent for ratios."""
    assert comparison.statistics is not None
    assert comparison.statistics.interval is not None
    low, high = (comparison.metric.scaled(bound) * _factor(comparison) for bound in comparison.statistics.interval)
    return comparison.metric.scaled(comparison.statistics.mean) * _factor(comparison), low, high


def _factor(comparison: Comparison) -> int:
    return 100 if comparison.metric.scale == "ratio" else 1


def _unit(comparison: Comparison) -> str:
    return " %" if comparison.metric.scale == "ratio" else ""


def _of_loss(comparison: Comparison) -> str:
    """The unit of a loss that is not in nats per token, which the report names once for all."""
    return f" {BITS}" if comparison.metric.unit == BITS else ""


def _pairs(comparison: Comparison) -> str:
    return count(len(comparison.seeds), "seed pair")


def _fixed(value: float, places: int) -> str:
    text = f"{round(value, places):,.{max(0, places)}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text
