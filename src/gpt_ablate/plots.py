"""Which figures a study has, with the words that stand for them where they cannot be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from . import plot_curves, plot_effects
from .drawing import Theme
from .levels import label
from .tables import amount, number, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .study import Study

EFFECTS = ("main effect", "interaction")


@dataclass(frozen=True)
class Plate:
    """A figure: the stem of its files, what it says, how to read it, and how it is drawn."""

    name: str
    finding: str
    caption: str
    draw: Callable[[Theme], Figure]


def plates(report: Mapping[str, Any], study: Study) -> list[Plate]:
    """The study's figures in the order of the report; a study gets those that it has data for and that can be read."""
    return [plate for make in _MAKERS for plate in make(report, study)]


def leading(report: Mapping[str, Any]) -> str:
    """The kind of comparison that answers for the cells: of arms at their best, where settings were tuned."""
    return "tuned" if any(c["kind"] == "tuned" for c in report["comparisons"]) else "cell"


def _effects(report: Mapping[str, Any], study: Study) -> list[Plate]:
    rows = [c for c in report["comparisons"] if c["kind"] == leading(report)]
    caption = (
        "Difference from the baseline, seed by seed. Grey dots: one seed pair each; diamond "
        "and bar: their mean and its 95 % interval. An interval that leaves the zero line aside shows a difference"
        + _bands(report)
    )
    return _forest("effects", rows, caption, report)


def _factorial(report: Mapping[str, Any], study: Study) -> list[Plate]:
    rows = [c for c in report["comparisons"] if c["kind"] in EFFECTS]
    caption = (
        "Main effects (a factor's levels, averaged over the others) and two-way interactions (a difference of "
        "differences), seed by seed, with 95 % intervals" + _bands(report)
    )
    plates = _forest("factorial", rows, caption, report)
    cells = [cell for cell in report["cells"] if cell[_column(report)]["mean"] is not None]
    if rows and cells and plot_effects.crossed(report):
        caption = f"Means of the {report['metric']['name']} over cells. Parallel lines: the factors do not interact."
        finding = "Mean at each pair of levels: " + _ends(report)
        plates.append(Plate("interactions", finding, caption, partial(plot_effects.interactions, report)))
    return plates


def _forest(name: str, rows: Sequence[Mapping[str, Any]], caption: str, report: Mapping[str, Any]) -> list[Plate]:
    if not rows:
        return []
    shown = [c for m in report["metrics"] for c in plot_effects.drawn([r for r in rows if r["metric"] == m["key"]])]
    if len(shown) < len(rows):
        caption += f" The {len(shown)} largest of {len(rows)} differences; the table has all."
    finding = "Mean differences: " + "; ".join(_told(comparison, report) for comparison in shown[:12])
    return [Plate(name, finding, caption, partial(plot_effects.differences, report, rows))]


def _told(comparison: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    (metric,) = (m for m in report["metrics"] if m["key"] == comparison["metric"])
    if comparison["difference"] is None:
        return f"{comparison['label']}, no complete pair"
    text = f"{comparison['label']} {signed(comparison['difference'], comparison['interval'], metric['scale'])}"
    if comparison["interval"] is not None:
        low, high = (signed(end, comparison["interval"], metric["scale"]) for end in comparison["interval"])
        text += f" (95 % interval {low} to {high})"
    return f"{text}, {comparison['verdict']}"


def _bands(report: Mapping[str, Any]) -> str:
    told = ["; grey band: the margin within which a difference counts as negligible"] * any(
        metric["margin"] is not None for metric in report["metrics"]
    )
    told += ["; hatched: the interval of a difference between two arms of equal runs"] * bool(report["noise_floor"])
    return "".join(told) + "."


def _loss_curves(report: Mapping[str, Any], study: Study) -> list[Plate]:
    if not any(len(run.curves[key].steps) > 1 for run in study.runs for key in plot_curves.PANELS if key in run.curves):
        return []
    caption = "Loss against optimiser step" + _grouping(study)
    finding = f"Loss falls from about ln V ({report['references']['ln_vocab']:.2f}). {_ends(report)}"
    return [Plate("loss_curves", finding, caption, partial(plot_curves.loss_curves, report, study))]


def _budget_curves(report: Mapping[str, Any], study: Study) -> list[Plate]:
    if not report["budgets"] or not any("seconds" in run.curves for run in study.runs):
        return []
    caption = (
        "The same runs against what they spent" + _grouping(study) + " Dashed upright line: the budget that all "
        "cells reached, at which the table compares them."
    )
    finding = "Loss at equal budgets: " + "; ".join(
        f"{amount(each['budget'])} {each['unit']}: "
        + ", ".join(f"{cell['label']} {number(cell['mean'])}" for cell in each["cells"][:8])
        for each in report["budgets"]
    )
    return [Plate("equal_budgets", finding, caption, partial(plot_curves.budget_curves, report, study))]


def _grouping(study: Study) -> str:
    seeds = max((len(runs) for runs in study.cells().values()), default=0) > 1
    if len(study.cells()) > plot_curves.CELLS_APART:
        factor = plot_curves.colouring({"factors": study.factors})
        who = ": every run thin, the mean of all bold"
        if factor is not None:
            who = f", coloured by {factor}: every run thin, the mean of a colour bold"
    else:
        who = ": every seed thin, their mean bold" if seeds else ""
    ends = "; a cross where a run diverged" if any(run.status == "diverged" for run in study.runs) else ""
    return f"{who}{ends}."


def _learning_rates(report: Mapping[str, Any], study: Study) -> list[Plate]:
    if not plot_effects.readable(report):
        return []
    caption = (
        f"{report['metric']['name'].capitalize()} against learning rate: seeds as dots, lines through their means. "
        "A cross at the top: a run diverged there; its line passes over that rate."
    )
    arms = report["tuned_settings"] or []
    finding = "; ".join(
        f"{arm['arm']} is best at {label(arm['best'])} ({number(arm['mean'])})" for arm in arms if arm["best"]
    )
    finding = finding or _ends(report)
    return [Plate("learning_rates", finding, caption, partial(plot_effects.learning_rates, report, study))]


def _ends(report: Mapping[str, Any]) -> str:
    """Where the cells end, in words."""
    cells = report["cells"][:12]
    ends = ", ".join(f"{cell['label']} {number(cell[_column(report)]['mean'])}" for cell in cells)
    more = f" and {len(report['cells']) - 12} more cells" if len(report["cells"]) > 12 else ""
    return f"{report['metric']['name'].capitalize()}, mean over seeds: {ends}{more}."


def _column(report: Mapping[str, Any]) -> str:
    return str(report["metric"]["key"]).replace("/", "_")


_MAKERS = (_effects, _factorial, _learning_rates, _loss_curves, _budget_curves)
NAMES = ("effects", "factorial", "interactions", "learning_rates", "loss_curves", "equal_budgets")
"""Every figure there can be."""
