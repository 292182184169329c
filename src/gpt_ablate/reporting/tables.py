"""The tables of a report as text, shared by HTML and Markdown, and the formats of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt_ablate.reporting import sentences
from gpt_ablate.studies.factors import label

NONE = "–"
Cell = tuple[str, str]
"""The main text of a table cell, and a smaller text below it (may be empty)."""


@dataclass(frozen=True)
class Table:
    """A table with a caption. The first `headers` columns name the row; those in `words` are text, others numbers."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    headers: int = 1
    words: frozenset[int] = field(default_factory=frozenset)


def number(value: float | None) -> str:
    """Four significant digits."""
    return NONE if value is None else sentences.number(value, 4)


def signed(value: float | None, interval: Sequence[float] | None, scale: str) -> str:
    """A difference with its sign, rounded to two digits of half its interval; a ratio in per cent."""
    if value is None:
        return NONE
    unit = 100 if scale == "ratio" else 1
    half = unit * abs(interval[1] - interval[0]) / 2 if interval else 0.0
    text = f"{unit * value:+.{max(0, 1 - math.floor(math.log10(half)))}f}" if half else plus(unit * value)
    return text.replace("-", "−") + (" %" if scale == "ratio" else "")


def plus(value: float) -> str:
    """Three significant digits, with the sign."""
    return ("+" if value > 0 else "") + sentences.number(value)


def p_value(p: float | None) -> str:
    """A p-value to three decimals."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def tally(status: Mapping[str, int]) -> str:
    """ "4 done, 1 failed"."""
    return ", ".join(f"{n} {name}" for name, n in status.items() if n) or NONE


def comparisons(report: Mapping[str, Any], kinds: Iterable[str], caption: str) -> Table | None:
    """All comparisons of these kinds: pairs, difference, interval, p-values, verdict, power and effect of pairing."""
    metrics = {metric["key"]: metric for metric in report["metrics"]}
    several = len(metrics) > 1
    rows = []
    for each in (each for kind in kinds for each in report["comparisons"] if each["kind"] == kind):
        metric = metrics[each["metric"]]
        what = [(metric["name"], "")] if several else []
        against = "" if each["reference"] == report["baseline"] else f"against {each['reference']}"
        rows.append([(each["label"], against), *what, *_comparison(each, metric["scale"])])
    if not rows:
        return None
    columns = ["comparison", *(["metric"] if several else []), "pairs", "difference", "95 % interval", "p"]
    columns += ["adjusted p", "verdict", "detectable", "variance ratio"]
    words = {columns.index("verdict")} | ({1} if several else set())
    caption += (
        f" p: paired t test. Adjusted p: Holm's method over all comparisons of the same kind and metric. Detectable: "
        f"the smallest difference that the test detects with power {report['power']:g}. Variance ratio: the variance "
        "of the paired differences divided by the variance that unpaired runs would give; below 1, pairing by seed "
        "made the comparison more precise."
    )
    return Table(caption, columns, rows, words=frozenset(words))


def _comparison(each: Mapping[str, Any], scale: str) -> list[Cell]:
    interval = each["interval"]
    unit, of_unit = (100, " %") if scale == "ratio" else (1, "")
    sd = "" if each["sd"] is None else f"sd {sentences.number(unit * each['sd'], 2)}{of_unit}"
    between, bca = (_interval(each[key], interval, scale) for key in ("interval", "bca"))
    least = each["detectable"]
    detectable = NONE if least is None else f"±{sentences.number(unit * least, 2)}{of_unit}"
    return [
        (str(len(each["seeds"])), ""),
        (signed(each["difference"], interval, scale), sd),
        (between, f"BCa {bca}" if each["bca"] else ""),
        (p_value(each["p"]), ""),
        (p_value(each["p_holm"]), ""),
        (each["verdict"], ""),
        (detectable, ""),
        (_variance_ratio(each["variance_ratio"]), ""),
    ]


def _variance_ratio(ratio: float | None) -> str:
    if ratio is None:
        return NONE
    return "< 0.01" if 0 < ratio < 0.005 else f"{ratio:.2f}"


def _interval(ends: Sequence[float] | None, width: Sequence[float] | None, scale: str) -> str:
    return NONE if ends is None else " to ".join(signed(end, width, scale) for end in ends)


_IN_COLUMNS = {
    *("parameters", "flops_per_token", "tokens_per_second", "peak_memory_bytes"),
    *("train/epoch_loss", "eval/train_loss", "eval/val_loss", "val_bits_per_byte"),
}
"""Metrics that the table of cells shows, whatever is declared."""


def cells(report: Mapping[str, Any]) -> Table:
    """All cells: size, speed, losses, declared metrics, and the difference from the baseline in the primary one."""
    primary = report["metric"]
    against = {
        each["label"]: each
        for each in report["comparisons"]
        if each["kind"] == "cell" and each["metric"] == primary["key"]
    }
    columns = ["cell", "parameters", "FLOPs per token", "tokens/s", "peak memory", "early loss", "training batches"]
    others = [metric for metric in report["metrics"] if metric["key"] not in _IN_COLUMNS]
    columns += ["training loss", "validation loss", "bits per byte"]
    columns += [*(f"{metric['name']} ({metric['unit']})" for metric in others), "difference", "adjusted p", "runs"]
    rows = []
    for cell in report["cells"]:
        each = against.get(cell["label"])
        differs = _difference(each, primary["scale"]) if each else [("baseline" if cell["baseline"] else NONE, ""), NO]
        losses = ("early_loss", "train_epoch_loss", "eval_train_loss", "eval_val_loss", "val_bits_per_byte")
        rows.append(
            [
                (cell["label"], ""),
                (NONE if cell["parameters"] is None else f"{cell['parameters']:,}", ""),
                (amount(cell["flops_per_token"]), ""),
                _spread(cell["tokens_per_second"], 0),
                _spread(cell["peak_memory_bytes"], 2, 1e9, " GB"),
                *(_spread(cell[key], 4) for key in losses),
                *(_spread(cell["metrics"][metric["key"]], 4) for metric in others),
                *differs,
                (tally(cell["status"]), ""),
            ]
        )
    early = sorted({cell["early_step"] for cell in report["cells"] if cell["early_step"] is not None})
    caption = "All cells: means, with standard deviations and, in parentheses, numbers of runs. Losses are in nats per "
    caption += "token. "
    if early:
        steps = ", ".join(map(str, early))
        caption += f"Early loss: mean training-batch loss from the start to step {steps}. "
    caption += f"Difference: {primary['name']} minus that of the baseline, with its 95 % confidence interval."
    return Table(caption, columns, rows, words=frozenset({len(columns) - 1}))


NO: Cell = (NONE, "")


def _difference(each: Mapping[str, Any], scale: str) -> list[Cell]:
    interval = _interval(each["interval"], each["interval"], scale)
    below = interval if each["interval"] else "no interval"
    return [(signed(each["difference"], each["interval"], scale), below), (p_value(each["p_holm"]), "")]


def _spread(summary: Mapping[str, Any], decimals: int, unit: float = 1, suffix: str = "") -> Cell:
    if summary["mean"] is None:
        return NO
    sd = "" if summary["sd"] is None else f"± {summary['sd'] / unit:,.{decimals}f} "
    return f"{summary['mean'] / unit:,.{decimals}f}{suffix}", f"{sd}({summary['n']})"


def amount(value: float | None) -> str:
    """A large number with a metric prefix: 1.23 T, 46.1 k."""
    if value is None:
        return NONE
    for size, letter in ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (size if letter != ' k' else 1e3):.3g}{letter}"
    return f"{value:,.4g}"


def budget_metric(report: Mapping[str, Any]) -> str:
    """What is compared at equal budgets."""
    key: str = report["budgets"][0]["metric"]
    names: dict[str, str] = {metric["key"]: metric["name"] for metric in report["metrics"]}
    return names.get(key, key)


def budgets(report: Mapping[str, Any]) -> Table | None:
    """The metric at equal tokens, FLOPs and seconds: a row for each cell, a column for each budget."""
    shared = report["budgets"]
    if not shared:
        return None
    columns = ["cell", *(f"at {amount(each['budget'])} {each['unit']}" for each in shared)]
    rows = []
    for i, cell in enumerate(shared[0]["cells"]):
        rows.append([(cell["label"], ""), *(_spread(each["cells"][i], 4) for each in shared)])
    name = budget_metric(report)
    return Table(f"{name.capitalize()} at equal budgets: mean ± standard deviation (number of runs).", columns, rows)


def tuned(report: Mapping[str, Any]) -> Table | None:
    """Each arm at its best setting."""
    if not report["tuned_settings"]:
        return None
    rows = []
    for arm in report["tuned_settings"]:
        best = NONE if arm["best"] is None else label(arm["best"])
        figures = (number(arm["mean"]), number(arm["lr_sensitivity"]))
        rows.append([(each, "") for each in (arm["arm"], str(arm["trials"]), best, *figures)])
    caption = "Each arm at its best setting. Learning-rate sensitivity (Wortsman et al. 2023): the mean over the "
    caption += "learning rates of the loss minus the best loss."
    columns = ["arm", "trials", "best setting", report["metric"]["name"], "sensitivity"]
    return Table(caption, columns, rows, words=frozenset({2}))


def repeats(report: Mapping[str, Any]) -> Table | None:
    """Repeated runs, and whether they are identical to the first ones."""
    if not report["repeats"]:
        return None
    rows = []
    for each in report["repeats"]:
        outcome = "bit-identical" if each["equal"] else "different"
        first = NONE if each["first_difference"] is None else str(each["first_difference"])
        rows.append([(each["run"], ""), (each["of"], ""), (outcome, ""), (first, "")])
    return Table("Repeated runs.", ["run", "repeats", "outcome", "first difference"], rows, words=frozenset({1, 2, 3}))
