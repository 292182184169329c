"""report.html and report.md: one content in two forms. What comes from runs is escaped in both unless marked safe."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from . import tables
from .drawing import Drawing
from .plots import EFFECTS, Plate, leading
from .wording import count

if TYPE_CHECKING:
    from .study import Study, StudyRun

NAMED = 4
"""Runs that a warning names; the end of the page names all."""
OPEN_SHOWN = 8
"""Comparisons told of those that one launch would settle."""
SAMPLES_SHOWN = 12
"""Cells whose samples stand open on the page; those of the others are folded away."""


@dataclass(frozen=True)
class Sample:
    """What one cell wrote, or why there is nothing."""

    label: str
    prompt: str
    text: str | None
    note: str


@dataclass(frozen=True)
class Samples:
    """The samples of all cells at one step, of one seed."""

    step: int
    seed: int
    settings: str
    cells: list[Sample]


def html(report: Mapping[str, Any], study: Study, figures: Sequence[tuple[Plate, Drawing]]) -> str:
    """The page as one file; each figure with its light and its dark SVG, inside it."""
    images = {plate.name: (plate, _data_uri(drawing.light), _data_uri(drawing.dark)) for plate, drawing in figures}
    return _environment(None).get_template("report.html.j2").render(_content(report, study), figures=images)


def markdown(report: Mapping[str, Any], study: Study, plates: Sequence[Plate]) -> str:
    """The same for a repository's pages and for reviews; figures are files beside it."""
    figures = {plate.name: plate for plate in plates}
    template = _environment(escape_markdown).get_template("report.md.j2")
    return template.render(_content(report, study), figures=figures)


def _content(report: Mapping[str, Any], study: Study) -> dict[str, Any]:
    kind = leading(report)
    plain = f"Differences from the baseline, {report['baseline']}, paired by seed."
    best = "Arms compared each at its best setting, which the other seeds chose, paired by seed."
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
        "resting": _resting(report),
        "samples": samples(study),
        "samples_shown": SAMPLES_SHOWN,
    }


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers."""
    rests = report["rests_on"]
    told = []
    for what in ("missing", "running", "failed", "diverged"):
        if names := _names(rests[what]):
            more = f" and {len(names) - NAMED} more, named at the end" if len(names) > NAMED else ""
            told.append(f"{count(len(names), 'run')} {what}: {', '.join(names[:NAMED])}{more}.")
    if rests["hardware_differs"]:
        told.append("The runs were made on differing hardware: do not compare their speed and memory.")
    return told


def _names(runs: Sequence[Any]) -> list[str]:
    return [each["name"] if isinstance(each, Mapping) else each for each in runs]


@dataclass(frozen=True)
class Open:
    """Comparisons that the same launch would settle."""

    told: list[str]
    more: int
    command: str | None


def _open(report: Mapping[str, Any]) -> list[Open]:
    """What more seeds would settle, the fewest first; comparisons that take the same command together."""
    units = {metric["key"]: (100, " %") if metric["scale"] == "ratio" else (1, "") for metric in report["metrics"]}
    by_command: dict[str | None, list[str]] = {}
    for each in sorted(report["comparisons"], key=lambda each: each["more_seeds"] or 0):
        if each["more_seeds"] and each["kind"] in (*EFFECTS, leading(report)):
            unit, sign = units[each["metric"]]
            by_command.setdefault(each["command"], []).append(
                f"{each['label']} against {each['reference']}: {each['pairs_needed']} pairs show a difference of the "
                f"declared margin ({unit * each['margin']:g}{sign}) with probability {report['power']:g}, "
                f"{each['more_seeds']} more than there are."
            )
    return [Open(told[:OPEN_SHOWN], len(told[OPEN_SHOWN:]), command) for command, told in by_command.items()]


def _about(report: Mapping[str, Any]) -> str:
    """Under the title: how much there is, and what is compared with what."""
    sizes = [count(len(report["cells"]), "cell"), count(report["rests_on"]["runs"], "run")]
    seeds = count(len(report["rests_on"]["seeds"]), "seed")
    told = f"{', '.join(sizes)}, {seeds}. Declared metric: {report['metric']['name']}"
    return f"{told}. Baseline: {report['baseline']}." if len(report["cells"]) > 1 else f"{told}."


def _resting(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, on what, by what: name and value."""
    rests, data = report["rests_on"], report["rests_on"]["data"]
    floor = report["references"]["unigram_entropy"]
    told = [
        ("runs", f"{rests['runs']}"),
        ("seeds", ", ".join(map(str, rests["seeds"]))),
        ("data", f"{data['train_tokens']:,} training and {data['val_tokens']:,} validation tokens"),
        ("SHA-256 of the data", data["sha256"]),
        ("unigram entropy", f"{floor:.4f} nats per token; a model at this line has learned token frequencies only"),
        ("ln V", f"{report['references']['ln_vocab']:.4f} nats per token; every token equally likely"),
        ("hardware", "; ".join(rests["hardware"])),
        ("versions", ", ".join(f"{name} {' and '.join(found)}" for name, found in rests["versions"].items())),
        ("git commit", ", ".join(str(commit) for commit in rests["git_commits"])),
    ]
    told[1:1] = [(what, ", ".join(_names(rests[what]))) for what in ("missing", "running", "failed", "diverged")]
    for pair in rests["incomplete_pairs"]:
        told.append((f"lacking for {pair['label']}", f"seed {', '.join(map(str, pair['lacks']))}"))
    return [(name, value) for name, value in told if value]


def _runs(report: Mapping[str, Any], study: Study) -> tables.Table:
    prints = report["rests_on"]["fingerprints"]
    rows = [
        [(run.name, ""), (run.status, ""), (str(run.seed), ""), (prints.get(run.name, tables.NONE)[:16], "")]
        for run in study.runs
    ]
    rows += [[(name, ""), ("missing", ""), tables.NO, tables.NO] for name in study.missing]
    columns = ["run", "status", "seed", "fingerprint (first 16 digits)"]
    return tables.Table("Every run.", columns, rows, words=frozenset({1, 3}))


def samples(study: Study) -> Samples | None:
    """What every cell wrote at the last step that all of them sampled, with the seed that most of them have."""
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
    note = f"no sample at this step; the last was at step {max(lines)}" if lines else "no sample of this seed"
    return Sample(label, "", None, note)


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def escape_markdown(value: Any) -> Markup:
    """Text that Markdown shows as it is, on one line; what was marked safe stays."""
    if isinstance(value, Markup):
        return value
    one_line = " ".join(str(value).split())
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|[\\`*\[\]<>&|~#!$]", r"\\\g<0>", one_line)
    escaped = re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", escaped)
    whole = re.sub(r"(?i)(https?|ftp|mailto|www)([:.])", r"\1\\\2", escaped)
    return Markup(whole)  # noqa: S704 (the mark says that it is escaped)


def fenced(text: str, language: str = "text") -> Markup:
    """A block of code that ends where the text ends: its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")  # noqa: S704 (nothing in it ends the block)


@cache
def _environment(finalize: Callable[[Any], Any] | None) -> Environment:
    """Templates, escaping by default: HTML's way, or that of `finalize`, whose output is marked safe for HTML's."""
    environment = Environment(
        loader=PackageLoader("gpt_ablate"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fenced": fenced}
    return environment
