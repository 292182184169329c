"""The comparisons that the cells of a study allow. Each is over seed pairs; p-values are adjusted for each family."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gpt_ablate.config.metrics import Metric
from gpt_ablate.studies import effects, stats
from gpt_ablate.studies.factors import label
from gpt_ablate.studies.study import Study

ALPHA, POWER, CONFIDENCE = 0.05, 0.8, 0.95
Kind = Literal["cell", "tuned", "main effect", "interaction"]
KINDS: tuple[Kind, ...] = ("cell", "tuned", "main effect", "interaction")
Levels = Mapping[str, str]
Key = tuple[tuple[str, str], ...]
"""Levels in a form that can be a key of a dict: those of an arm, of a setting or of a group."""
Values = dict[int, float]
"""Seed -> the metric of that run; its logarithm on the scale "ratio"."""
LEAST_FOR_VARIANCES = 3
"""Seed pairs below which two variances are not compared."""


@dataclass(frozen=True)
class Comparison:
    """The differences `label` minus `reference`, one for each seed; of logarithms on the scale "ratio"."""

    kind: Kind
    label: str
    reference: str
    metric: Metric
    margin: float | None
    seeds: list[int]
    differences: list[float]
    over: tuple[str, ...] = ()
    """The factors that a main effect is averaged over."""
    unpaired_variance: float = math.nan
    """The variance that one difference would have if the runs of a seed were independent of each other."""
    statistics: stats.Difference | None = None
    p_holm: float | None = None
    verdict: stats.Verdict = "no difference shown"
    detectable: float | None = None
    pairs_needed: int | None = None

    @property
    def more_seeds(self) -> int | None:
        """How many seed pairs must be added to reach `pairs_needed`."""
        return None if self.pairs_needed is None else self.pairs_needed - len(self.seeds)

    @property
    def variance_ratio(self) -> float | None:
        """The variance of the paired differences over that of unpaired ones; below 1, pairing gave more precision.

        For two cells with values x and y, by sample variances over the seeds of the comparison:
        Var(x - y) / (Var x + Var y) = 1 - 2 r sx sy / (sx^2 + sy^2), where r is Pearson's correlation over seeds. For
        a contrast sum(w z) of several cells z: Var(sum(w z)) / sum(w^2 Var z). Its inverse is the relative efficiency
        of the paired design: unpaired runs need 1 / ratio times as many seeds for the same variance (common random
        numbers: Law 2015, Simulation Modeling and Analysis, section 11.2). None below three pairs, and where no value
        varies over the seeds.
        """
        if len(self.seeds) < LEAST_FOR_VARIANCES or self.unpaired_variance == 0:
            return None
        assert self.statistics is not None
        assert self.statistics.sd is not None
        return self.statistics.sd**2 / self.unpaired_variance


def compare(study: Study, metric: Metric, margin: float | None) -> list[Comparison]:
    """Every comparison of the study by one metric. Holm's adjustment is over those of one kind (Holm 1979)."""
    values = values_of_cells(study, metric)
    arms = {
        arm: {seed: values[cell][seed] for seed, cell in cells.items()}
        for arm, cells in cells_of_arms(study, metric).items()
    }
    families = [list(_cells(study, values, metric, margin))]
    if study.tuned_keys:
        families.append(list(_arms(study, arms, metric, margin)))
    effects = list(_effects(study, arms, metric, margin))
    families += [[effect for effect in effects if effect.kind == kind] for kind in KINDS[2:]]
    return [judged for family in families for judged in judge(family)]


def judge(family: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with statistics, adjusted p-value, verdict, detectable difference and pairs needed."""
    found = [stats.paired(each.differences, CONFIDENCE) if each.differences else None for each in family]
    adjusted = stats.holm([each.p if each else None for each in found])
    alpha = ALPHA / max(1, sum(p is not None for p in adjusted))
    return [_judged(each, difference, p, alpha) for each, difference, p in zip(family, found, adjusted, strict=True)]


def _judged(each: Comparison, difference: stats.Difference | None, p: float | None, alpha: float) -> Comparison:
    """`alpha` is that of the strictest step of Holm's procedure, so that the power is not overstated."""
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
    """Each cell against the baseline, which takes the cell's own levels in the `within` keys."""
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
    spreads = [stats.summarise(of_cell[seed] for seed in seeds).sd for of_cell in (values, references)]
    unpaired = math.fsum(math.nan if sd is None else sd**2 for sd in spreads)
    return Comparison(kind, label(levels), label(other), metric, margin, seeds, differences, unpaired_variance=unpaired)


def reference(study: Study, levels: Levels) -> dict[str, str]:
    """The levels that a cell or an arm is compared with: those of the baseline, and its own in the `within` keys."""
    return {key: level if key in study.within_keys else study.factors[key][0] for key, level in levels.items()}


def settings(study: Study) -> dict[Key, dict[Key, str]]:
    """Arm (the levels that are not tuned) -> setting (the tuned levels) -> cell."""
    found: dict[Key, dict[Key, str]] = {}
    for cell, levels in study.levels.items():
        arm = _key({key: level for key, level in levels.items() if key not in study.tuned_keys})
        found.setdefault(arm, {})[_key({key: levels[key] for key in study.tuned_keys})] = cell
    return found


def candidates(study: Study) -> dict[Key, dict[Key, str]]:
    """The settings that may be chosen as the best one of an arm: those without a diverged run."""
    diverged = {cell for cell, runs in study.cells().items() if any(run.status == "diverged" for run in runs)}
    return {
        arm: {setting: cell for setting, cell in tried.items() if cell not in diverged}
        for arm, tried in settings(study).items()
    }


def values_of_cells(study: Study, metric: Metric) -> dict[str, Values]:
    """Cell -> seed -> the metric, for the runs that have it."""
    return {
        cell: {run.seed: number for run in runs if (number := metric.statistical(run)) is not None}
        for cell, runs in study.cells().items()
    }


def cells_of_arms(study: Study, metric: Metric) -> dict[Key, dict[int, str]]:
    """Arm -> seed -> the cell whose run stands for the arm.

    In a study that tunes nothing each cell is an arm; else it is the cell of the setting that is best on the other
    seeds, so that no seed takes part in the choice of its own setting.
    """
    values = values_of_cells(study, metric)
    if not study.tuned_keys:
        return {_key(levels): dict.fromkeys(values[cell], cell) for cell, levels in study.levels.items()}
    sign = 1 if metric.lower_is_better else -1
    arms = {}
    for arm, tried in candidates(study).items():
        losses = {setting: {s: sign * value for s, value in values[cell].items()} for setting, cell in tried.items()}
        arms[arm] = {seed: tried[setting] for seed, (setting, _) in stats.tuned(losses).items()}
    return arms


def _effects(study: Study, arms: Mapping[Key, Values], metric: Metric, margin: float | None) -> Iterator[Comparison]:
    """Main effects and two-way interactions for each `within` group, if two or more factors are fully crossed."""
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
        for effect in effects.factorial_effects(full, factors):
            yield Comparison(
                "main effect" if len(effect.factors) == 1 else "interaction",
                _crossed(effect.factors, effect.levels) + at,
                _crossed(effect.factors, effect.references) + at,
                metric,
                margin,
                list(effect.contrasts),
                list(effect.contrasts.values()),
                tuple(key for key in factors if key not in effect.factors),
                effect.unpaired_variance,
            )


def _crossed(factors: Sequence[str], levels: Sequence[str]) -> str:
    return " x ".join(f"{factor}={level}" for factor, level in zip(factors, levels, strict=True))


def _ordered(study: Study, levels: Levels) -> Key:
    return tuple((key, levels[key]) for key in study.factors if key in levels)


def _key(levels: Levels) -> Key:
    return tuple(levels.items())
