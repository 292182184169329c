"""How often the 95 % intervals hold the truth, and how often a study of nothing shows something.

`python -m benchmarks.coverage` simulates 2,000 studies of each kind and writes benchmarks/coverage.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from gpt_ablate.studies import stats

DRAWS = 2_000
SIZES = (3, 5, 10, 30)
FAMILY = 6
ENOUGH = stats.LEAST_FOR_BCA
BOOTSTRAPS = 999
"""Fewer than stats.paired draws, so that the simulation ends within minutes."""
TARGET = Path(__file__).with_name("coverage.md")


def draw(kind: str, seed: int, *shape: int) -> npt.NDArray[np.float64]:
    """Differences whose true mean is 0, either normal or skewed (lognormal, skewness 6.2)."""
    draws = np.random.default_rng(seed)
    if kind == "normal":
        return draws.normal(size=shape)
    return draws.lognormal(size=shape) - np.exp(0.5)


def t_coverage(rows: npt.NDArray[np.float64]) -> float:
    """Share of Student's t intervals that hold 0, as `stats.paired` computes them."""
    n = rows.shape[1]
    if n < ENOUGH:
        intervals = np.array([stats.paired(row).interval for row in rows])
    else:  # without the bootstrap that stats.paired adds from here on
        found = scipy_stats.ttest_1samp(rows, 0, axis=1).confidence_interval(0.95)
        intervals = np.stack([found.low, found.high], axis=1)
    return float(np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)))


def bca_coverage(rows: npt.NDArray[np.float64]) -> float:
    """Share of BCa bootstrap intervals that hold 0."""
    held = 0
    for i, row in enumerate(rows):
        found = scipy_stats.bootstrap(
            (row,), np.mean, method="BCa", n_resamples=BOOTSTRAPS, rng=np.random.default_rng(i)
        ).confidence_interval
        held += found.low <= 0 <= found.high
    return held / len(rows)


def family_error(kind: str, n: int) -> float:
    """Share of studies of six cells like their baseline in which Holm's adjusted p is below 0.05 for one of them."""
    runs = draw(kind, 100 + n, DRAWS, FAMILY + 1, n)
    p_values = scipy_stats.ttest_1samp(runs[:, 1:] - runs[:, :1], 0, axis=-1).pvalue
    return float(np.mean([min(stats.holm(list(family))) < 0.05 for family in p_values]))


def main() -> None:
    lines = ["| draws | pairs | t interval holds | BCa interval holds | a family errs |", "|---|---:|---:|---:|---:|"]
    for kind in ("normal", "lognormal"):
        for n in SIZES:
            rows = draw(kind, n, DRAWS, n)
            cells = [f"{100 * value:.1f} %" for value in (t_coverage(rows), bca_coverage(rows), family_error(kind, n))]
            lines.append(f"| {kind} | {n} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    TARGET.write_text(HEAD + "\n".join(lines) + "\n" + TAIL, encoding="utf-8")


HEAD = f"""# What the intervals promise, simulated

`python -m benchmarks.coverage`: {DRAWS:,} studies a row. Holds: the share of 95 % intervals of the mean paired
difference that hold the true one. Errs: the share of studies, {FAMILY} cells that do not differ from their baseline, in
which Holm's adjusted p is below 0.05 for at least one. The standard error of a share near 95 % is 0.5 points.

"""
TAIL = f"""
For normal differences the t interval covers what it says at every number of pairs, and families keep to their 5 %. For
differences as skewed as these no interval covers what it says with 30 pairs or fewer: expect 84 to 88 % instead of
95 %. (A difference of two runs that are skewed alike is symmetric, so this is the bad case; families, which are made
of such differences, err even less.) The BCa bootstrap ({BOOTSTRAPS} resamples here) covers less than the t interval at
few pairs and no more at {ENOUGH}, so the t interval decides, and reports show BCa beside it from {ENOUGH} pairs on.
"""

if __name__ == "__main__":
    main()
