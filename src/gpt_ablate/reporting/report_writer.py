"""Writes the report of a study: pages, figures and tables, from the files of its runs alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gpt_ablate.reporting import aa_control, analysis, pages, study_figures, tensorboard
from gpt_ablate.reporting.figure_style import render
from gpt_ablate.studies import results, study
from gpt_ablate.studies.study import Study
from gpt_ablate.utils.errors import UsageError
from gpt_ablate.utils.files import misplaced, unusable, write_bytes
from gpt_ablate.utils.messages import say, visible

PAGES = ("results.csv", "report.md", "report.html", "report.json")
ROWS_ON_TERMINAL = 40
"""If there are more runs, the terminal shows only those that are not done; results.csv has all."""


def write(
    path: Path,
    target: Path,
    console: Console,
    not_started: int = 0,
    *,
    allow_missing: bool = False,
    noise_floor: Path | None = None,
) -> None:
    """Write the report on the runs below `path` into `target`, and show the answer and a table of the runs.

    Everything is made before the first file is written, and each file appears whole. Raises UsageError if no run
    is finished, or if the runs cannot be compared (see `study.read` and `analysis.analyse`).
    """
    if problem := unusable(target):
        raise UsageError([problem])
    runs = study.read(path)
    if taken := [*misplaced(files=_places(target), folders=[target / "figures"]), *tensorboard.taken(target, runs)]:
        raise UsageError(taken)
    noise = study.read(noise_floor) if noise_floor else aa_control.find_noise_floor(runs, say)
    found = analysis.analyse(runs, allow_missing, noise)
    plates = study_figures.plates(found, runs)
    files, figures = _files(found, runs, plates)
    for stale in set(_places(target)) - {target / name for name in files}:
        stale.unlink(missing_ok=True)
    for name, content in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target / name, content)
    if target.absolute() == path.absolute():
        answer = "\n\n".join(pages.escape_markdown(sentence) for sentence in found["answer"])
        tensorboard.write(path, runs, answer, figures)
    _show(found, runs, target, console, not_started)


def _places(target: Path) -> list[Path]:
    """Every file that a report may consist of, TensorBoard's apart."""
    figures = [f"figures/{name}.{kind}" for name in study_figures.NAMES for kind in ("svg", "png")]
    return [target / name for name in (*figures, *PAGES)]


def _files(
    report: Mapping[str, Any], runs: Study, plates: Sequence[study_figures.Plate]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Every file of the report by its path, and the figures as PNG by name."""
    files: dict[str, bytes] = {}
    figures: dict[str, bytes] = {}
    drawn = []
    for plate in plates:
        drawing = render(plate.draw)
        files |= {f"figures/{plate.name}.svg": drawing.light, f"figures/{plate.name}.png": drawing.png}
        figures[plate.name] = drawing.png
        drawn.append((plate, drawing))
    texts = {
        "results.csv": _csv(study.rows(runs)),
        "report.md": pages.markdown(report, runs, plates),
        "report.html": pages.html(report, runs, drawn),
        "report.json": json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    return files | {name: visible(text).encode() for name, text in texts.items()}, figures


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _show(report: Mapping[str, Any], runs: Study, target: Path, console: Console, not_started: int) -> None:
    """Print the answer, the warnings, the table of runs, and the path of the report."""
    console.print()
    for sentence in [*report["answer"], *pages.warnings(report)]:
        console.print(visible(sentence), markup=False, highlight=False, soft_wrap=True)
    shown, notes = list(runs.runs), []
    if len(shown) > ROWS_ON_TERMINAL:
        shown = [run for run in shown if run.status != "done"]
        done = len(runs.runs) - len(shown)
        notes.append(f"{done} more runs are done; all runs: {results.shown(target / 'results.csv')}")
    notes.append(f"Report: {results.shown(target / 'report.html')} (also report.md, report.json)")
    results.print_summary([run.directory for run in shown], runs.path, console, not_started, notes)
