"""Figures of losses and accuracies against steps, and of losses against tokens, FLOPs and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_ablate.config.metrics import BITS, NATS, bits_per_byte
from gpt_ablate.reporting import figure_style
from gpt_ablate.reporting.figure_style import Floats, Style, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt_ablate.studies.study import Study, StudyRun

CELLS_APART = 8
"""With more cells than this, runs are coloured by the first factor with few enough levels instead of by cell."""
PANELS = {"train/loss": "training batches", "eval/val_loss": "validation split"}
ACCURACIES = {"eval/train_accuracy": "training examples", "eval/accuracy": "validation examples"}


@dataclass(frozen=True)
class Group:
    """Runs that share a colour; their mean is over those that are `done`."""

    label: str
    runs: list[StudyRun]

    @property
    def done(self) -> list[StudyRun]:
        """The runs that finished."""
        return [run for run in self.runs if run.status == "done"]


def groups(report: Mapping[str, Any], study: Study) -> list[Group]:
    """The cells, baseline first; if there are many, the levels of one factor, or all runs together."""
    cells = study.cells()
    if len(cells) <= CELLS_APART:
        return [Group(study.label(name), runs) for name, runs in cells.items()]
    every = [run for runs in cells.values() for run in runs]
    factor = colouring(report)
    if factor is None:
        return [Group("all cells", every)]
    levels = report["factors"][factor]
    return [Group(f"{factor}={level}", [run for run in every if run.levels[factor] == level]) for level in levels]


def colouring(report: Mapping[str, Any]) -> str | None:
    """The factor whose levels get the colours where cells are many; None if each has too many levels."""
    return next((key for key, levels in report["factors"].items() if len(levels) <= figure_style.MOST_LINES), None)


def loss_curves(report: Mapping[str, Any], study: Study, theme: Theme) -> Figure:
    """Loss against optimiser step: training batches, and the validation split where it was evaluated."""
    figure, panels = _against_steps(report, study, theme, PANELS)
    for axis in panels:
        _loss_axis(axis, report, study, theme, named=axis is panels[-1])
    panels[0].set_ylabel(f"loss ({unit(study)})")
    return figure


def accuracy_curves(report: Mapping[str, Any], study: Study, theme: Theme) -> Figure:
    """Accuracy against optimiser step: training examples, and the validation split."""
    figure, panels = _against_steps(report, study, theme, ACCURACIES)
    for axis in panels:
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1.02)
    panels[0].set_ylabel("accuracy (fraction of targets)")
    return figure


def _against_steps(
    report: Mapping[str, Any], study: Study, theme: Theme, panels: Mapping[str, str]
) -> tuple[Figure, list[Axes]]:
    """A panel for each of these quantities that has curves."""
    grouped = groups(report, study)
    shown = [key for key in panels if any(len(points(run, key)[0]) > 1 for run in study.runs)]
    figure = figure_style.canvas(8.4 if len(shown) > 1 else 6.2, 3.8)
    axes = list(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0])
    for axis, key in zip(axes, shown, strict=True):
        for i, group in enumerate(grouped):
            curves = {id(run): values(study, run, key) for run in group.runs}
            _draw(axis, group, curves, figure_style.style(theme, i), len(study.runs))
        figure_style.title(axis, panels[key])
        axis.set_xlabel("optimiser step")
    figure_style.legend(figure, axes[0])
    return figure, axes


def budget_curves(report: Mapping[str, Any], study: Study, theme: Theme) -> Figure:
    """The same runs against tokens, FLOPs and seconds of training; the shared budget of each is marked."""
    grouped, key = groups(report, study), budget_key(report, study)
    flops = {cell["name"]: cell["flops_per_token"] for cell in report["cells"]}
    figure = figure_style.canvas(8.4, 3.4)
    panels = figure.subplots(1, 3, sharey=True)
    for axis, spending in zip(panels, ("tokens", "FLOPs", "seconds"), strict=True):
        for i, group in enumerate(grouped):
            curves = {}
            for run in group.runs:
                steps, losses = values(study, run, key)
                spent = _spent(run, steps, spending, flops[run.cell])
                if spent is not None:
                    curves[id(run)] = figure_style.decimated(spent, losses, 100)
            _draw(axis, group, curves, figure_style.style(theme, i), len(study.runs))
        for budget in {each["budget"] for each in report["budgets"] if each["unit"] == spending}:
            axis.axvline(budget, color=theme.muted, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.set_xlabel(spending if spending != "seconds" else "seconds of training")
        figure_style.in_thousands(axis)
        axis.locator_params(axis="x", nbins=5)
        _loss_axis(axis, report, study, theme, named=spending == "seconds")
    panels[0].set_ylabel(f"{_NAMES[key]}\n({unit(study)})")
    figure_style.legend(figure, panels[0])
    return figure


_NAMES = {
    "train/loss": "training-batch loss",
    "train/epoch_loss": "training-batch loss",
    "eval/train_loss": "training loss",
    "eval/val_loss": "validation loss",
}


def budget_key(report: Mapping[str, Any], study: Study) -> str:
    """The loss to draw against budgets: the primary metric if it is one with a curve, else the training-batch loss."""
    key = str(report["metric"]["key"])
    is_curve = key in _NAMES and any(len(points(run, key)[0]) > 2 for run in study.runs)
    return key if is_curve else "train/loss"


def points(run: StudyRun, key: str) -> tuple[Floats, Floats]:
    """Steps and values of a run's curve; empty where it has none."""
    curve = run.curves.get(key)
    if curve is None:
        return np.empty(0), np.empty(0)
    return curve.steps.astype(np.float64), curve.values


def unit(study: Study) -> str:
    """The unit in which the losses of a study's runs are drawn."""
    return BITS if study.several_tokenizers else NATS


def values(study: Study, run: StudyRun, key: str) -> tuple[Floats, Floats]:
    """Steps and values of a run's curve, losses in `unit`; empty where it has none in it."""
    steps, recorded = points(run, key)
    if not study.several_tokenizers or key in ACCURACIES:
        return steps, recorded
    one_nat = bits_per_byte(1.0, run.record["data"], "validation" if key == "eval/val_loss" else "training")
    return (np.empty(0), np.empty(0)) if one_nat is None else (steps, recorded * one_nat)


def _spent(run: StudyRun, steps: Floats, unit: str, flops_per_token: float | None) -> Floats | None:
    """The tokens, FLOPs or seconds that the run had used at these steps; None where that is not known."""
    if unit == "seconds":
        at, seconds = points(run, "seconds")
        return np.interp(steps, [0.0, *at], [0.0, *seconds]) if len(at) else None
    config = run.record["config"]
    tokens = steps * (config["data"]["batch_size"] * config["model"]["context_length"])
    if unit == "tokens":
        return tokens
    return None if flops_per_token is None else tokens * flops_per_token


def _draw(
    axis: Axes, group: Group, curves: Mapping[int, tuple[Floats, Floats]], style: Style, lines_in_all: int
) -> None:
    """Thin lines for runs, a bold line for the mean of finished runs, a cross at the end of a diverged run."""
    from matplotlib.collections import LineCollection

    several, many = len(group.runs) > 1, lines_in_all > figure_style.MANY_LINES
    points_each = figure_style.POINTS // 4 if many else figure_style.POINTS
    thin = []
    for run in group.runs:
        x, y = figure_style.decimated(*curves.get(id(run), (np.empty(0), np.empty(0))), points_each)
        if len(x) and (several or run.status != "done"):
            thin.append(np.column_stack([x, y]))
        if len(x) and run.status == "diverged":
            axis.plot(x[-1:], y[-1:], marker="x", color=style.colour, markersize=7, markeredgewidth=1.6, zorder=4)
    lines = LineCollection(thin, colors=style.colour, linewidths=0.6, zorder=2, rasterized=many)
    lines.set_alpha(0.5 if lines_in_all <= 40 else 0.15)
    lines.set_in_layout(False)
    axis.add_collection(lines)
    axis.autoscale_view()
    finished = [curves[id(run)] for run in group.done if id(run) in curves and len(curves[id(run)][0])]
    if finished:
        x, y = figure_style.decimated(*mean(finished))
        label = f"{group.label}  (n = {len(finished)})"
        axis.plot(x, y, color=style.colour, linestyle=style.line, linewidth=2, label=label, zorder=3)


def mean(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The mean over the range that all curves cover; curves with different points are interpolated."""
    first = curves[0][0]
    if all(len(x) == len(first) and np.array_equal(x, first) for x, _ in curves):
        return first, np.mean([y for _, y in curves], axis=0)
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(low, high, figure_style.POINTS)
    return grid, np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)


def _loss_axis(axis: Axes, report: Mapping[str, Any], study: Study, theme: Theme, named: bool) -> None:
    """An axis from 0 to just above ln V, with lines at ln V and at the unigram entropy; higher losses are cut off.

    Where tokenizers differ, so do these references, and there are no lines.
    """
    references = report["references"]
    axis.set_xlim(left=0)
    if study.several_tokenizers:
        axis.set_ylim(bottom=0)
        return
    axis.set_ylim(0, 1.12 * references["ln_vocab"])
    figure_style.note_line(axis, references["ln_vocab"], "ln V" if named else "", theme)
    figure_style.note_line(axis, references["unigram_entropy"], "unigram\nentropy" if named else "", theme)
