"""The comparisons that a study's cells allow, each over seed pairs, judged together in families."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from . import stats
from .levels import label
from .metrics import Metric
from .study import Study

ALPHA, POWER, CONFIDENCE = 0.05, 0.8, 0.95
Kind = Literal["cell", "tuned", "main effect", "interaction"]
KINDS: tuple[Kind, ...] = ("cell", "tuned", "main effect", "interaction")
Levels = Mapping[str, str]
Key = tuple[tuple[str, str], ...]
"""Levels as something that can be a key: those of an arm, a setting, a group."""
Values = dict[int, float]
"""Seed -> the metric of that run, its logarithm on the scale "ratio"."""


@dataclass(frozen=True)
class Comparison:
    """`label` less `reference`, seed by seed; differences are of logarithms on the scale "ratio"."""

    kind: Kind
    label: str
    reference: str
    metric: Metric
    margin: float | None
    seeds: list[int]
    differences: list[float]
    over: tuple[str, ...] = ()
    """The factors that a main effect is averaged over."""
    statistics: stats.Difference | None = None
    p_holm: float | None = None
    verdict: stats.Verdict = "no difference shown"
    detectable: float | None = None
    pairs_needed: int | None = None

    @property
    def more_seeds(self) -> int | None:
        """How many pairs are lacking to settle the comparison."""
        return None if self.pairs_needed is None else self.pairs_needed - len(self.seeds)


def compare(study: Study, metric: Metric, margin: float | None) -> list[Comparison]:
    """Every comparison of the study by one metric. Holm's adjustment is over those of one kind (Holm 1979)."""
    values = {
        cell: {run.seed: number for run in runs if (number := metric.statistical(run)) is not None}
        for cell, runs in study.cells().items()
    }
    arms = tuned_values(study, values, metric) if study.tuned_keys else values_of_arms(study, values)
    families = [list(_cells(study, values, metric, margin))]
    if study.tuned_keys:
        families.append(list(_arms(study, arms, metric, margin)))
    effects = list(_effects(study, arms, metric, margin))
    families += [[effect for effect in effects if effect.kind == kind] for kind in KINDS[2:]]
    return [judged for family in families for judged in judge(family)]


def judge(family: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with statistics, adjusted p, verdict, and what the pairs there are could have shown."""
    found = [stats.paired(each.differences, CONFIDENCE) if each.differences else None for each in family]
    adjusted = stats.holm([each.p if each else None for each in found])
    alpha = ALPHA / max(1, sum(p is not None for p in adjusted))
    return [_judged(each, difference, p, alpha) for each, difference, p in zip(family, found, adjusted, strict=True)]


def _judged(each: Comparison, difference: stats.Difference | None, p: float | None, alpha: float) -> Comparison:
    """`alpha` is what the strictest step of Holm's procedure allows, so that power is not overstated."""
    if difference is None or difference.sd is None:
        return replace(each, statistics=difference)
    margin = None if each.margin is None else each.metric.unscaled(each.margin)
    verdict = stats.verdict(difference, p, margin, each.metric.lower_is_better, ALPHA)
    needed = None
    if verdict == "no difference shown" and margin is not None:
        needed = max(stats.pairs_needed(margin, difference.sd, POWER, alpha), difference.n + 1)
    detectable = stats.detectable(difference.n, difference.sd, POWER, alpha)
    return replace(each, statistics=difference, p_holm=p, verdict=verdict, detectable=detectable, pairs_needed=needed)


def _cells(study: Study, values: Mapping[str, Values], metric: Metric, margin: float | None) -> Iterator[Comparison]:
    """Each cell against the baseline, or the cell that is the baseline but for the `within` keys."""
    by_levels = {_key(levels): cell for cell, levels in study.levels.items()}
    for cell, levels in study.levels.items():
        wanted = reference(study, levels)
        if wanted != levels:
            other = by_levels.get(_key(wanted))
            yield _pair("cell", levels, wanted, values[cell], values[other] if other else {}, metric, margin)


def _arms(study: Study, arms: Mapping[Key, Values], metric: Metric, margin: float | None) -> Iterator[Comparison]:
    for key, values in arms.items():
        wanted = reference(study, dict(key))
        if wanted != dict(key):
            yield _pair("tuned", dict(key), wanted, values, arms.get(_key(wanted), {}), metric, margin)


def _pair(
    kind: Kind,
    levels: Levels,
    other: Levels,
    values: Values,
    references: Values,
    metric: Metric,
    margin: float | None,
) -> Comparison:
    seeds = sorted(values.keys() & references.keys())
    differences = [values[seed] - references[seed] for seed in seeds]
    return Comparison(kind, label(levels), label(other), metric, margin, seeds, differences)


def reference(study: Study, levels: Levels) -> dict[str, str]:
    """The levels that a cell or an arm is compared with: the baseline's, but its own in the `within` keys."""
    return {key: level if key in study.within_keys else study.factors[key][0] for key, level in levels.items()}


def settings(study: Study) -> dict[Key, dict[Key, str]]:
    """Arm (the levels that are not tuned) -> setting (those that are) -> cell."""
    found: dict[Key, dict[Key, str]] = {}
    for cell, levels in study.levels.items():
        arm = _key({key: level for key, level in levels.items() if key not in study.tuned_keys})
        found.setdefault(arm, {})[_key({key: levels[key] for key in study.tuned_keys})] = cell
    return found


def candidates(study: Study) -> dict[Key, dict[Key, str]]:
    """The settings that can be an arm's best: those without a run that diverged."""
    diverged = {cell for cell, runs in study.cells().items() if any(run.status == "diverged" for run in runs)}
    return {
        arm: {setting: cell for setting, cell in tried.items() if cell not in diverged}
        for arm, tried in settings(study).items()
    }


def tuned_values(study: Study, values: Mapping[str, Values], metric: Metric) -> dict[Key, Values]:
    """Each arm's value for each seed at the setting that is best for the other seeds."""
    sign = 1 if metric.lower_is_better else -1
    arms = {}
    for arm, tried in candidates(study).items():
        losses = {setting: {s: sign * value for s, value in values[cell].items()} for setting, cell in tried.items()}
        arms[arm] = {seed: sign * loss for seed, (_, loss) in stats.tuned(losses).items()}
    return arms


def values_of_arms(study: Study, values: Mapping[str, Values]) -> dict[Key, Values]:
    """Every cell an arm of its own."""
    return {_key(levels): values[cell] for cell, levels in study.levels.items()}


def _effects(study: Study, arms: Mapping[Key, Values], metric: Metric, margin: float | None) -> Iterator[Comparison]:
    """Main effects and two-way interactions where at least two factors are fully crossed, for each `within` group."""
    factors = {key: study.factors[key] for key in study.crossed_keys}
    if len(factors) < 2:
        return
    for group in itertools.product(*(study.factors[key] for key in study.within_keys)):
        fixed = dict(zip(study.within_keys, group, strict=True))
        cells = {
            levels: arms.get(_ordered(study, dict(zip(factors, levels, strict=True)) | fixed))
            for levels in itertools.product(*factors.values())
        }
        full = {levels: values for levels, values in cells.items() if values}
        if len(full) < len(cells) or not set.intersection(*(set(values) for values in full.values())):
            continue
        at = f" at {label(fixed)}" if fixed else ""
        for effect in stats.factorial_effects(full, factors):
            yield Comparison(
                "main effect" if len(effect.factors) == 1 else "interaction",
                _crossed(effect.factors, effect.levels) + at,
                _crossed(effect.factors, effect.references) + at,
                metric,
                margin,
                list(effect.contrasts),
                list(effect.contrasts.values()),
                tuple(key for key in factors if key not in effect.factors),
            )


def _crossed(factors: Sequence[str], levels: Sequence[str]) -> str:
    return " x ".join(f"{factor}={level}" for factor, level in zip(factors, levels, strict=True))


def _ordered(study: Study, levels: Levels) -> Key:
    return tuple((key, levels[key]) for key in study.factors if key in levels)


def _key(levels: Levels) -> Key:
    return tuple(levels.items())
