"""Figures of a study."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[tuple[int, float]]
"""(step, loss) in the order of steps."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d00")
"""Okabe and Ito's palette, told apart by colour-blind readers; then darker ones."""
STYLES = ("-", "--", "-.", ":")


def curve(history: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """The points of one metric in a run's metrics."""
    return [(line["step"], line[key]) for line in history if key in line]


def loss_curves(
    panels: Mapping[str, Mapping[str, Sequence[Curve]]], unigram_entropy: float, ln_vocab: float, paths: Sequence[Path]
) -> None:
    """Write `panels` (title -> cell -> a curve for each seed) beside each other, seeds thin, their mean bold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, cells) in zip(axes, panels.items(), strict=True):
        for i, (cell, curves) in enumerate(cells.items()):
            _cell(axis, cell, curves, COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)])
        for height, name in ((ln_vocab, "ln V"), (unigram_entropy, "unigram entropy")):
            axis.axhline(height, color="0.45", linewidth=0.9, linestyle=(0, (1, 2)))
            axis.annotate(
                name,
                (1, height),
                xycoords=("axes fraction", "data"),
                xytext=(-3, -3),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=8,
                color="0.35",
            )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimiser step")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss (nats per token)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=8)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)


def _cell(axis: Axes, name: str, curves: Sequence[Curve], colour: str, style: str) -> None:
    if len(curves) > 1:
        for one in curves:
            axis.plot(*zip(*one, strict=True), color=colour, linestyle=style, linewidth=0.7, alpha=0.45)
    shared = sorted(set.intersection(*({step for step, _ in one} for one in curves)))
    at = [dict(one) for one in curves]
    means = [statistics.fmean(values[step] for values in at) for step in shared]
    axis.plot(shared, means, color=colour, linestyle=style, linewidth=2, label=f"{name} (n = {len(curves)})")
