"""The figures of a study, with their captions and the texts for readers who cannot see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gpt_ablate.reporting import figure_curves, figure_effects
from gpt_ablate.reporting.figure_style import Theme
from gpt_ablate.reporting.tables import amount, budget_metric, number, signed
from gpt_ablate.studies.factors import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpt_ablate.studies.study import Study

EFFECTS = ("main effect", "interaction")


@dataclass(frozen=True)
class Plate:
    """A figure: the stem of its files, its finding (the alternative text), its caption, and how it is drawn."""

    name: str
    finding: str
    caption: str
    draw: Callable[[Theme], Figure]


def plates(report: Mapping[str, Any], study: Study) -> list[Plate]:
    """The figures of a study, in the order of the report; those without data, or that cannot be read, are left out."""
    return [plate for make in _MAKERS for plate in make(report, study)]


def leading(report: Mapping[str, Any]) -> str:
    """The kind of comparison that answers for the cells: "tuned" where settings were tuned, else "cell"."""
    return "tuned" if any(c["kind"] == "tuned" for c in report["comparisons"]) else "cell"


def _effects(report: Mapping[str, Any], study: Study) -> list[Plate]:
    kind = leading(report)
    rows = [c for c in report["comparisons"] if c["kind"] == kind]
    caption = (
        "Differences from the baseline, paired by seed. Grey dots: single seed pairs. Diamond and bar: mean and 95 % "
        "confidence interval. The p-values in the table are adjusted for several comparisons; the intervals are not."
        + _bands(report)
    )
    return _forest("effects", rows, caption, report)


def _factorial(report: Mapping[str, Any], study: Study) -> list[Plate]:
    rows = [c for c in report["comparisons"] if c["kind"] in EFFECTS]
    caption = (
        "Main effects (of one factor, averaged over the other factors) and two-way interactions (differences of "
        "differences), paired by seed, with 95 % confidence intervals." + _bands(report)
    )
    plates = _forest("factorial", rows, caption, report)
    cells = [cell for cell in report["cells"] if _mean(cell, report) is not None]
    if rows and cells and figure_effects.crossed(report):
        caption = f"Means of the {report['metric']['name']} over cells. Parallel lines mean no interaction."
        finding = "Mean at each pair of levels: " + _ends(report)
        plates.append(Plate("interactions", finding, caption, partial(figure_effects.interactions, report)))
    return plates


def _forest(name: str, rows: Sequence[Mapping[str, Any]], caption: str, report: Mapping[str, Any]) -> list[Plate]:
    if not rows:
        return []
    shown = [c for m in report["metrics"] for c in figure_effects.drawn([r for r in rows if r["metric"] == m["key"]])]
    if len(shown) < len(rows):
        caption += f" The figure shows the {len(shown)} largest of {len(rows)} differences; the table shows all."
    finding = "Mean differences: " + "; ".join(_told(comparison, report) for comparison in shown[:12])
    return [Plate(name, finding, caption, partial(figure_effects.differences, report, rows))]


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
    told = [" Grey band: the declared margin; a difference whose interval lies inside it is negligible."] * any(
        metric["margin"] is not None for metric in report["metrics"]
    )
    told += [" Hatched band: 95 % confidence interval of the noise floor (A/A control)."] * bool(report["noise_floor"])
    return "".join(told)


def _loss_curves(report: Mapping[str, Any], study: Study) -> list[Plate]:
    if not _has_curves(study, figure_curves.PANELS):
        return []
    caption = "Loss against optimiser step" + _grouping(study)
    reference = "" if study.several_tokenizers else f" ln V is {report['references']['ln_vocab']:.2f}."
    finding = f"Loss curves.{reference} {_ends(report)}"
    return [Plate("loss_curves", finding, caption, partial(figure_curves.loss_curves, report, study))]


def _accuracy_curves(report: Mapping[str, Any], study: Study) -> list[Plate]:
    if not _has_curves(study, figure_curves.ACCURACIES):
        return []
    caption = "Accuracy against optimiser step" + _grouping(study)
    finding = f"Accuracy curves. {_ends(report)}"
    return [Plate("accuracy_curves", finding, caption, partial(figure_curves.accuracy_curves, report, study))]


def _has_curves(study: Study, keys: Iterable[str]) -> bool:
    return any(len(run.curves[key].steps) > 1 for run in study.runs for key in keys if key in run.curves)


def _budget_curves(report: Mapping[str, Any], study: Study) -> list[Plate]:
    if not report["budgets"] or not any("seconds" in run.curves for run in study.runs):
        return []
    caption = (
        "Loss of the same runs against tokens, FLOPs and training time" + _grouping(study) + " Dashed vertical line: "
        "the largest budget that all runs reached. The table compares the cells at this budget."
    )
    finding = f"{budget_metric(report).capitalize()} at equal budgets: " + "; ".join(
        f"{amount(each['budget'])} {each['unit']}: "
        + ", ".join(f"{cell['label']} {number(cell['mean'])}" for cell in each["cells"][:8])
        for each in report["budgets"]
    )
    return [Plate("equal_budgets", finding, caption, partial(figure_curves.budget_curves, report, study))]


def _grouping(study: Study) -> str:
    seeds = max((len(runs) for runs in study.cells().values()), default=0) > 1
    if len(study.cells()) > figure_curves.CELLS_APART:
        factor = figure_curves.colouring({"factors": study.factors})
        who = ". Thin lines: runs. Bold line: mean of all runs."
        if factor is not None:
            who = f", coloured by {factor}. Thin lines: runs. Bold lines: means of a colour."
    else:
        who = ". Thin lines: runs of one seed. Bold lines: means over seeds." if seeds else "."
    ends = " Crosses: points where a run diverged." if any(run.status == "diverged" for run in study.runs) else ""
    return f"{who}{ends}"


def _learning_rates(report: Mapping[str, Any], study: Study) -> list[Plate]:
    if not figure_effects.readable(report):
        return []
    caption = (
        f"{report['metric']['name'].capitalize()} against learning rate. Dots: runs. Lines: means over seeds. Cross at "
        "the top: a run diverged at this learning rate, so no mean is drawn."
    )
    arms = report["tuned_settings"] or []
    finding = "; ".join(
        f"{arm['arm']} is best at {label(arm['best'])} ({number(arm['mean'])})" for arm in arms if arm["best"]
    )
    finding = finding or _ends(report)
    return [Plate("learning_rates", finding, caption, partial(figure_effects.learning_rates, report, study))]


def _ends(report: Mapping[str, Any]) -> str:
    """The mean result of each cell, in words."""
    cells = report["cells"][:12]
    ends = ", ".join(f"{cell['label']} {number(_mean(cell, report))}" for cell in cells)
    more = f" and {len(report['cells']) - 12} more cells" if len(report["cells"]) > 12 else ""
    return f"{report['metric']['name'].capitalize()}, mean over seeds: {ends}{more}."


def _mean(cell: Mapping[str, Any], report: Mapping[str, Any]) -> float | None:
    """Of the runs of a cell, in the primary metric."""
    mean: float | None = cell["metrics"][report["metric"]["key"]]["mean"]
    return mean


_MAKERS = (_effects, _factorial, _learning_rates, _loss_curves, _accuracy_curves, _budget_curves)
NAMES = (
    *("effects", "factorial", "interactions", "learning_rates"),
    *("loss_curves", "accuracy_curves", "equal_budgets"),
)
"""The names of all possible figures."""
