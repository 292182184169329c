"""Figures of effects: paired differences with their intervals, factorial means, loss against learning rate."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_ablate.config.metrics import METRICS, NATS, bits_per_byte, value
from gpt_ablate.reporting import figure_style
from gpt_ablate.reporting.figure_style import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt_ablate.studies.study import Study, StudyRun

LEARNING_RATE = "optimizer.lr"
ROWS = 40
"""A figure of differences has at most so many rows: those with the largest differences."""
PAIRS = 6
"""A figure of interactions has at most so many pairs of factors."""
TICKS = 16
"""At most so many learning rates are named on the axis."""

Comparison = Mapping[str, Any]


def drawn(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one metric that a figure shows, in their original order."""
    known = [comparison for comparison in comparisons if comparison["difference"] is not None]
    order = sorted(range(len(known)), key=lambda i: -abs(known[i]["difference"]))
    return [known[i] for i in sorted(order[:ROWS])]


def differences(report: Mapping[str, Any], comparisons: Sequence[Comparison], theme: Theme) -> Figure:
    """A panel for each metric: differences of seeds (dots), mean with interval, zero, margin and noise floor."""
    metrics = [m for m in report["metrics"] if any(c["metric"] == m["key"] for c in comparisons)]
    by_metric = {m["key"]: drawn([c for c in comparisons if c["metric"] == m["key"]]) for m in metrics}
    heights = [0.8 + 0.42 * len(rows) for rows in by_metric.values()]
    figure = figure_style.canvas(7.2, sum(heights))
    panels = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, metric in zip(panels, metrics, strict=True):
        rows, unit = by_metric[metric["key"]], 100 if metric["scale"] == "ratio" else 1
        for y, row in enumerate(rows):
            _row(axis, row, y, theme, unit)
        _bands(axis, metric, report if metric["key"] == report["metric"]["key"] else None, theme, unit)
        axis.set_xlabel(f"{metric['name']}: difference ({'%' if unit == 100 else metric['unit']})")
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.locator_params(axis="x", nbins=6)
        axis.grid(axis="x", color=theme.rule, linewidth=0.4)
        axis.set_axisbelow(True)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axis.set_ylim(len(rows) - 0.4, -0.7)
    figure_style.legend(figure, panels[0], 2)
    return figure


def _row(axis: Axes, comparison: Comparison, y: int, theme: Theme, unit: float) -> None:
    """One comparison: mean and interval on its row, dots of the seeds above."""
    once = y == 0
    dots = [unit * difference for difference in comparison["differences"]]
    axis.plot(
        dots,
        [y - 0.24] * len(dots),
        "o",
        color=theme.muted,
        markersize=5,
        alpha=0.7,
        markeredgewidth=0,
        label="one seed" if once else None,
    )
    mean, colour = unit * comparison["difference"], theme.lines[0]
    if comparison["interval"] is not None:
        low, high = (unit * end for end in comparison["interval"])
        axis.errorbar(mean, y, xerr=[[mean - low], [high - mean]], color=colour, linewidth=2, capsize=3.5, zorder=3)
    axis.plot(mean, y, "D", color=colour, markersize=6, zorder=4, label="mean, 95 % interval" if once else None)


def _bands(axis: Axes, metric: Mapping[str, Any], report: Mapping[str, Any] | None, theme: Theme, unit: float) -> None:
    """Zero, the margin, and (for the metric it was measured in) the noise floor, down all rows.

    The noise floor may be wider than the panel, which is scaled to the effects; the legend gives its ends.
    """
    axis.axvline(0, color=theme.ink, linewidth=0.9, zorder=2)
    margin = metric["margin"]
    if margin is not None:
        label = "negligible: within the declared margin"
        axis.axvspan(-unit * margin, unit * margin, color=theme.band, linewidth=0, zorder=0, label=label)
    floor = report and report["noise_floor"]
    if floor and floor["interval"] is not None:
        axis.autoscale_view()
        axis.set_xlim(axis.get_xlim())
        low, high = (unit * end for end in floor["interval"])
        axis.axvspan(
            low,
            high,
            facecolor="none",
            edgecolor=theme.muted,
            hatch="////",
            linewidth=0.6,
            zorder=1,
            label=f"noise floor: {low:+.2g} to {high:+.2g}".replace("-", "−"),
        )


def crossed(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs of factors with few enough levels for a panel."""
    few = [key for key, levels in report["factors"].items() if len(levels) <= figure_style.MOST_LINES]
    return list(itertools.combinations(few, 2))


def interactions(report: Mapping[str, Any], theme: Theme) -> Figure:
    """A panel for each pair of factors: cell means over the other factors; parallel lines mean no interaction."""
    metric = report["metric"]
    cells = [cell for cell in report["cells"] if cell["metrics"][metric["key"]]["mean"] is not None]
    pairs = crossed(report)[:PAIRS]
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = figure_style.canvas(2.9 * columns + 0.6 if len(pairs) > 1 else 5.2, 0.4 + 3.0 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in panels.flat[len(pairs) :]:
        axis.set_visible(False)
    for axis, (along, between) in zip(panels.flat, pairs, strict=False):
        levels = report["factors"][along]
        for i, level in enumerate(report["factors"][between]):
            means = []
            for x in levels:
                crossing = [c for c in cells if c["levels"][along] == x and c["levels"][between] == level]
                found = [cell["metrics"][metric["key"]]["mean"] for cell in crossing]
                means.append(statistics.fmean(found) if found else np.nan)
            look = figure_style.style(theme, i)
            axis.plot(
                range(len(levels)),
                means,
                color=look.colour,
                linestyle=look.line,
                marker=look.marker,
                linewidth=1.8,
                label=f"{between}={level}",
            )
        axis.set_xticks(range(len(levels)), levels)
        axis.set_xlim(-0.35, len(levels) - 0.65)
        axis.margins(y=0.15)
        axis.set_xlabel(along)
        axis.legend(loc="best", handlelength=2.6)
    for axis in panels[:, 0]:
        axis.set_ylabel(f"{metric['name']}\n({metric['unit']})")
    return figure


def readable(report: Mapping[str, Any]) -> bool:
    """Whether the study varies the learning rate, in lines few enough for a figure."""
    factors = report["factors"]
    lines = {tuple(cell["levels"][key] for key in factors if key != LEARNING_RATE) for cell in report["cells"]}
    return LEARNING_RATE in factors and len(lines) <= figure_style.MOST_LINES


def _references(report: Mapping[str, Any], study: Study) -> dict[str, float]:
    """ln V and the unigram entropy in the unit of the primary metric; none if it is no loss, or tokenizers differ."""
    metric = METRICS.get(report["metric"]["key"])
    if metric is None or metric.split is None or study.several_tokenizers:
        return {}
    named = {"ln V": report["references"]["ln_vocab"], "unigram\nentropy": report["references"]["unigram_entropy"]}
    if metric.unit == NATS:
        return named
    data = study.runs[0].record["data"]
    found = {name: bits_per_byte(nats, data, metric.split) for name, nats in named.items()}
    return {name: number for name, number in found.items() if number is not None}


def learning_rates(report: Mapping[str, Any], study: Study, theme: Theme) -> Figure:
    """Final loss against learning rate: a line for each arm (and each value of other tuned keys), seeds as dots."""
    key, names = report["metric"]["key"], report["metric"]
    tuned = [k for k in report["factors"] if k in report["tune"] and k != LEARNING_RATE]
    arms = [k for k in report["factors"] if k not in tuned and k != LEARNING_RATE]
    lines: dict[tuple[str, ...], dict[str, list[StudyRun]]] = {}
    for cell, runs in study.cells().items():
        levels = study.levels[cell]
        lines.setdefault(tuple(levels[k] for k in [*arms, *tuned]), {})[levels[LEARNING_RATE]] = runs
    colours = {arm: i for i, arm in enumerate(dict.fromkeys(line[: len(arms)] for line in lines))}
    kinds = {other: i for i, other in enumerate(dict.fromkeys(line[len(arms) :] for line in lines))}
    figure = figure_style.canvas(7.2, 4.0)
    axis = figure.subplots()
    axis.set_xscale("log")
    values = {id(run): value(run, key) for run in study.runs if run.status == "done"}
    known = [number for number in values.values() if number is not None]
    references = _references(report, study)
    top = 1.12 * (references["ln V"] if references else max(known, default=1.0))
    for i, (line, cells) in enumerate(lines.items()):
        colour = theme.lines[colours[line[: len(arms)]] % len(theme.lines)]
        kind = kinds[line[len(arms) :]]
        x, y = [], []
        for rate in sorted(cells, key=float):
            ends = [number for run in cells[rate] if (number := values.get(id(run))) is not None]
            axis.plot([float(rate)] * len(ends), ends, "o", color=colour, markersize=3, alpha=0.45, markeredgewidth=0)
            lost = sum(run.status == "diverged" for run in cells[rate])
            if lost:
                shift = 1 + 0.05 * (i - (len(lines) - 1) / 2)  # lines that diverge at one rate stand beside each other
                axis.plot(float(rate) * shift, 0.97 * top, "x", color=colour, markersize=8, markeredgewidth=1.8)
            if ends and not lost:
                x.append(float(rate))
                y.append(statistics.fmean(ends))
        label = ", ".join(f"{k}={level}" for k, level in zip([*arms, *tuned], line, strict=True)) or names["name"]
        axis.plot(
            x,
            y,
            color=colour,
            linestyle=figure_style.STYLES[kind % len(figure_style.STYLES)],
            marker=figure_style.MARKERS[kind % len(figure_style.MARKERS)],
            markersize=5,
            linewidth=1.8,
            label=label,
        )
    axis.plot([], [], "x", color=theme.muted, markersize=7, markeredgewidth=1.6, linestyle="none", label="diverged")
    axis.set_ylim(0, top)
    rates = sorted({float(level) for level in report["factors"][LEARNING_RATE]})
    if len(rates) <= TICKS:
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.minorticks_off()
    axis.set_xlabel("learning rate")
    axis.set_ylabel(f"{names['name']} ({names['unit']})")
    for name, height in references.items():
        figure_style.note_line(axis, height, name, theme)
    figure_style.legend(figure, axis, 2)
    return figure
