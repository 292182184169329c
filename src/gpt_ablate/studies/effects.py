"""Main effects and interactions of full factorial studies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt_ablate.studies.stats import Difference, Floats, paired


@dataclass(frozen=True)
class Effect:
    """A main effect (one factor) or an interaction (two): `levels` against `references`, seed by seed."""

    factors: tuple[str, ...]
    levels: tuple[str, ...]
    references: tuple[str, ...]
    contrasts: dict[int, float]
    unpaired_variance: float
    """Of a contrast of independent runs: the sum of w^2 Var over its cells with weights w; NaN for one seed."""

    @property
    def difference(self) -> Difference:
        """The contrasts as paired differences."""
        return paired(self.contrasts.values())


def factorial_effects(
    losses: Mapping[tuple[str, ...], Mapping[int, float]], factors: Mapping[str, Sequence[str]]
) -> list[Effect]:
    """Main effects and two-way interactions of a full factorial study.

    `losses` maps the levels of a cell, in the order of `factors`, to a number for each seed; the
    first level of a factor is its reference. A seed counts if every cell has it. Within a seed a
    main effect is the mean over all other factors of level less reference, an interaction the
    difference of such differences; over seeds they are paired differences, so cells may differ
    in spread. With two levels a factor they are 2 and 4 times the effect-coded coefficients.

    Raises ValueError if a cell is missing or no seed has every cell.
    """
    names, shape = list(factors), [len(levels) for levels in factors.values()]
    cells = list(itertools.product(*factors.values()))
    if missing := [cell for cell in cells if cell not in losses]:
        raise ValueError(f"no runs for {missing}")
    seeds = sorted(set.intersection(*(set(losses[cell]) for cell in cells)))
    if not seeds:
        raise ValueError("no seed has every cell")
    table = np.array([[losses[cell][seed] for cell in cells] for seed in seeds]).reshape(len(seeds), *shape)
    variances = table.var(axis=0, ddof=1) if len(seeds) > 1 else np.full(shape, math.nan)
    effects = []
    for order in (1, 2):
        for chosen in itertools.combinations(range(len(names)), order):
            others = tuple(axis + 1 for axis in range(len(names)) if axis not in chosen)
            means = dict(zip(seeds, table.mean(axis=others), strict=True))
            averaged = math.prod(table.shape[axis] for axis in others)
            of_means = variances.mean(axis=tuple(axis - 1 for axis in others)) / averaged
            for levels in itertools.product(*(range(1, shape[axis]) for axis in chosen)):
                effects.append(_effect(names, factors, chosen, levels, means, of_means))
    return effects


def _effect(
    names: list[str],
    factors: Mapping[str, Sequence[str]],
    chosen: tuple[int, ...],
    levels: tuple[int, ...],
    means: Mapping[int, Floats],
    variances: Floats,
) -> Effect:
    """The contrast of `levels` with the references; `means` of a seed and `variances` have an axis for each factor."""
    contrasts, unpaired = dict.fromkeys(means, 0.0), 0.0
    for taken in itertools.product((False, True), repeat=len(levels)):
        index = tuple(level if take else 0 for level, take in zip(levels, taken, strict=True))
        for seed, of_seed in means.items():
            contrasts[seed] += (-1) ** taken.count(False) * float(of_seed[index])
        unpaired += float(variances[index])
    chosen_names = tuple(names[axis] for axis in chosen)
    return Effect(
        chosen_names,
        tuple(factors[name][level] for name, level in zip(chosen_names, levels, strict=True)),
        tuple(factors[name][0] for name in chosen_names),
        contrasts,
        unpaired,
    )
