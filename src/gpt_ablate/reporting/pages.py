"""report.html and report.md: the same content in two formats. Text from runs is escaped in both."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gpt_ablate.reporting import tables
from gpt_ablate.reporting.figure_style import Drawing
from gpt_ablate.reporting.launch_commands import MOST_SEEDS
from gpt_ablate.reporting.sentences import count
from gpt_ablate.reporting.study_figures import EFFECTS, Plate, leading
from gpt_ablate.studies.stats import MOST_PAIRS

if TYPE_CHECKING:
    from gpt_ablate.studies.study import Study, StudyRun

NAMED = 4
"""A warning names at most so many runs; the end of the page names all."""
OPEN_SHOWN = 8
"""The page lists at most so many comparisons for one command."""
SAMPLES_SHOWN = 12
"""The samples of so many cells are visible on the page; the others are inside a closed element."""


@dataclass(frozen=True)
class Sample:
    """The text that one cell generated, or the reason why there is none."""

    label: str
    prompt: str
    text: str | None
    note: str


@dataclass(frozen=True)
class Samples:
    """The samples of all cells at one step and with one seed."""

    step: int
    seed: int
    settings: str
    cells: list[Sample]


def html(report: Mapping[str, Any], study: Study, figures: Sequence[tuple[Plate, Drawing]]) -> str:
    """The page as one file, which contains a light and a dark SVG of each figure."""
    images = {plate.name: (plate, _data_uri(drawing.light), _data_uri(drawing.dark)) for plate, drawing in figures}
    return _environment(None).get_template("report.html.j2").render(_content(report, study), figures=images)


def markdown(report: Mapping[str, Any], study: Study, plates: Sequence[Plate]) -> str:
    """The same content as Markdown; the figures are separate files."""
    figures = {plate.name: plate for plate in plates}
    template = _environment(escape_markdown).get_template("report.md.j2")
    return template.render(_content(report, study), figures=figures)


def _content(report: Mapping[str, Any], study: Study) -> dict[str, Any]:
    kind = leading(report)
    plain = f"Differences from the baseline, {report['baseline']}, paired by seed."
    best = "Differences from the baseline arm, paired by seed, each arm at the setting that is best on the other seeds."
    factorial = "Main effects and two-way interactions, paired by seed."
    return {
        "report": report,
        "about": _about(report),
        "rests": report["rests_on"],
        "primary": report["metric"],
        "warnings": warnings(report),
        "comparisons": tables.comparisons(report, (kind,), best if kind == "tuned" else plain),
        "settings": tables.comparisons(report, ("cell",), plain) if kind == "tuned" else None,
        "factorial": tables.comparisons(report, EFFECTS, factorial),
        "cells": tables.cells(report),
        "budgets": tables.budgets(report),
        "tuned": tables.tuned(report),
        "repeats": tables.repeats(report),
        "runs": _runs(report, study),
        "tracebacks": [(run.name, run.record["error"]) for run in study.runs if run.status == "failed"],
        "open": _open(report),
        "unreachable": _UNREACHABLE,
        "resting": _resting(report, study),
        "samples": samples(study),
        "samples_shown": SAMPLES_SHOWN,
    }


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Runs without a result and differing hardware: what limits the numbers."""
    rests = report["rests_on"]
    told = []
    for what in ("missing", "running", "failed", "diverged"):
        if names := _names(rests[what]):
            more = f" and {len(names) - NAMED} more (listed at the end)" if len(names) > NAMED else ""
            told.append(f"{count(len(names), 'run')} {what}: {', '.join(names[:NAMED])}{more}.")
    if rests["hardware_differs"]:
        told.append("The runs were made on different hardware: do not compare their speed and memory.")
    return told


def _names(runs: Sequence[Any]) -> list[str]:
    return [each["name"] if isinstance(each, Mapping) else each for each in runs]


_UNREACHABLE = (
    "Not within reach: the difference to detect is small against the noise (the standard deviation of the paired "
    f"differences). More than {MOST_SEEDS} further seed pairs are needed."
)


@dataclass(frozen=True)
class Open:
    """Comparisons that need the same further seeds, or more seeds than are within reach."""

    within_reach: bool
    command: str | None
    told: list[str]
    more: int


def _open(report: Mapping[str, Any]) -> list[Open]:
    """The seeds that comparisons without a shown difference need, the fewest first, grouped by command."""
    groups: dict[tuple[bool, str | None], list[str]] = {}
    kinds = (*EFFECTS, leading(report))
    for each in sorted(report["comparisons"], key=lambda each: each["more_seeds"] or 0):
        if each["more_seeds"] and each["kind"] in kinds:
            within_reach = each["more_seeds"] <= MOST_SEEDS
            groups.setdefault((within_reach, each["command"]), []).append(_need(each, report))
    return [
        Open(within_reach, command, told[:OPEN_SHOWN], len(told[OPEN_SHOWN:]))
        for (within_reach, command), told in groups.items()
    ]


def _need(comparison: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """How many seed pairs a comparison needs."""
    (metric,) = (m for m in report["metrics"] if m["key"] == comparison["metric"])
    unit, sign = (100, " %") if metric["scale"] == "ratio" else (1, "")
    needed, margin = comparison["pairs_needed"], f"{unit * comparison['margin']:g}{sign}"
    at_least = "at least " if needed >= MOST_PAIRS else ""
    return (
        f"{comparison['label']} against {comparison['reference']}: {at_least}{needed:,} seed pairs, "
        f"{comparison['more_seeds']:,} more than now (margin of {margin} in {metric['name']})."
    )


def _about(report: Mapping[str, Any]) -> str:
    """The line below the title: size of the study, primary metric and baseline."""
    sizes = [count(len(report["cells"]), "cell"), count(report["rests_on"]["runs"], "run")]
    seeds = count(len(report["rests_on"]["seeds"]), "seed")
    told = f"{', '.join(sizes)}, {seeds}. Primary metric: {report['metric']['name']}"
    return f"{told}. Baseline: {report['baseline']}." if len(report["cells"]) > 1 else f"{told}."


def _resting(report: Mapping[str, Any], study: Study) -> list[tuple[str, str]]:
    """Runs, data, hardware and versions: name and value."""
    rests, data = report["rests_on"], report["rests_on"]["data"]
    entropy, uniform = (f"{report['references'][key]:.4f} nats per token" for key in ("unigram_entropy", "ln_vocab"))
    whose = " with the tokenizer of the baseline" if study.several_tokenizers else ""
    told = [
        ("runs", f"{rests['runs']}"),
        ("seeds", ", ".join(map(str, rests["seeds"]))),
        ("data", f"{data['train_tokens']:,} training and {data['val_tokens']:,} validation tokens"),
        ("SHA-256 of the data", data["sha256"]),
        (f"unigram entropy{whose}", f"{entropy} (training split): the loss of the token frequencies alone"),
        (f"ln V{whose}", f"{uniform}: the loss if all tokens are equally likely"),
        ("hardware", "; ".join(rests["hardware"])),
        ("versions", ", ".join(f"{name} {' and '.join(found)}" for name, found in rests["versions"].items())),
        ("git commit", ", ".join(str(commit) for commit in rests["git_commits"])),
    ]
    told[1:1] = [(what, ", ".join(_names(rests[what]))) for what in ("missing", "running", "failed", "diverged")]
    for pair in rests["incomplete_pairs"]:
        told.append((f"seeds without a result of {pair['label']}", ", ".join(map(str, pair["lacks"]))))
    return [(name, value) for name, value in told if value]


def _runs(report: Mapping[str, Any], study: Study) -> tables.Table:
    prints = report["rests_on"]["fingerprints"]
    rows = [
        [(run.name, ""), (run.status, ""), (str(run.seed), ""), (prints.get(run.name, tables.NONE)[:16], "")]
        for run in study.runs
    ]
    rows += [[(name, ""), ("missing", ""), tables.NO, tables.NO] for name in study.missing]
    columns = ["run", "status", "seed", "fingerprint (first 16 digits)"]
    return tables.Table("All runs.", columns, rows, words=frozenset({1, 3}))


def samples(study: Study) -> Samples | None:
    """The samples of all cells at the last step that they share, with the seed that most of them have."""
    cells = {cell: runs for cell, runs in study.cells().items() if runs}
    counts: dict[int, int] = {}
    for runs in cells.values():
        for run in runs:
            counts[run.seed] = counts.get(run.seed, 0) + (run.status == "done")
    if not counts:
        return None
    seed = min(counts, key=lambda each: (-counts[each], each))
    chosen = {cell: [run for run in runs if run.seed == seed] for cell, runs in cells.items()}
    lines = {cell: _by_step(runs) for cell, runs in chosen.items()}
    steps = [set(of_cell) for cell, of_cell in lines.items() if of_cell and _done(chosen[cell])]
    shared = set.intersection(*steps) if steps else set()
    if not shared:
        return None
    step = max(shared)
    drawn = [_sample(study.label(cell), of_cell, step) for cell, of_cell in lines.items()]
    first = next(of_cell[step] for of_cell in lines.values() if step in of_cell)
    settings = f"temperature {first['temperature']:g}"
    for key in ("top_k", "top_p"):
        settings += "" if first[key] is None else f", {key.replace('_', '-')} {first[key]:g}"
    return Samples(step, seed, settings, drawn)


def _by_step(runs: Sequence[StudyRun]) -> dict[int, dict[str, Any]]:
    return {line["step"]: line for run in runs for line in run.directory.samples()}


def _done(runs: Sequence[StudyRun]) -> bool:
    return any(run.status == "done" for run in runs)


def _sample(label: str, lines: Mapping[int, Mapping[str, Any]], step: int) -> Sample:
    if step in lines:
        return Sample(label, lines[step]["prompt"], lines[step]["text"], "")
    note = f"no sample at this step; the last one is from step {max(lines)}" if lines else "no sample with this seed"
    return Sample(label, "", None, note)


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def escape_markdown(value: Any) -> Markup:
    """Text on one line that Markdown shows unchanged; text that is marked safe is not escaped."""
    if isinstance(value, Markup):
        return value
    one_line = " ".join(str(value).split())
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|[\\`*\[\]<>&|~#!$]", r"\\\g<0>", one_line)
    escaped = re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", escaped)
    whole = re.sub(r"(?i)(https?|ftp|mailto|www)([:.])", r"\1\\\2", escaped)
    return Markup(whole)  # noqa: S704 (the mark says that it is escaped)


def fenced(text: str, language: str = "text") -> Markup:
    """A block of code whose fence is longer than any fence in the text, so that the text cannot end it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")  # noqa: S704 (nothing in it ends the block)


@cache
def _environment(finalize: Callable[[Any], Any] | None) -> Environment:
    """Templates that escape by default: for HTML, or by `finalize`, whose output is marked safe for HTML."""
    environment = Environment(
        loader=PackageLoader("gpt_ablate.reporting"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fenced": fenced}
    return environment
