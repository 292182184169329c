"""Write the report of a study from the files of its runs: `python -m gpt_ablate.report outputs/<study>`."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from . import analysis, board, controls, pages, plots, results, streams, study
from .drawing import render
from .files import misplaced, unusable, write_bytes
from .refusal import refusals, say, visible
from .registry import UsageError
from .study import Study

PAGES = ("results.csv", "report.md", "report.html", "report.json")
ROWS_ON_TERMINAL = 40
"""If there are more runs, the terminal shows only those that are not done; results.csv has all."""


@streams.outlive(needed=True)
def main() -> None:
    """The command: the answer and a table on the terminal; pages, figures and results.csv beside the runs."""
    parser = argparse.ArgumentParser(prog="python -m gpt_ablate.report", description=__doc__)
    parser.add_argument("study", type=Path, help="a folder that holds runs")
    parser.add_argument("--to", type=Path, help="where to write (default: the study's folder)")
    parser.add_argument("--allow-missing", action="store_true", help="compare the complete pairs if runs are missing")
    parser.add_argument(
        "--noise-floor",
        type=Path,
        metavar="STUDY",
        help="an A/A control to compare the effects with (default: aa_control-<model> next to the study's folder)",
    )
    args = parser.parse_args()
    with refusals():
        write(
            args.study,
            args.to or args.study,
            streams.console(),
            allow_missing=args.allow_missing,
            noise_floor=args.noise_floor,
        )


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
    if taken := [*misplaced(files=_places(target), folders=[target / "figures"]), *board.taken(target, runs)]:
        raise UsageError(taken)
    noise = study.read(noise_floor) if noise_floor else controls.find_noise_floor(runs, say)
    found = analysis.analyse(runs, allow_missing, noise)
    plates = plots.plates(found, runs)
    files, figures = _files(found, runs, plates)
    for stale in set(_places(target)) - {target / name for name in files}:
        stale.unlink(missing_ok=True)
    for name, content in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target / name, content)
    if target.absolute() == path.absolute():
        answer = "\n\n".join(pages.escape_markdown(sentence) for sentence in found["answer"])
        board.write(path, runs, answer, figures)
    _show(found, runs, target, console, not_started)


def _places(target: Path) -> list[Path]:
    """Every file that a report may consist of, TensorBoard's apart."""
    figures = [f"figures/{name}.{kind}" for name in plots.NAMES for kind in ("svg", "png")]
    return [target / name for name in (*figures, *PAGES)]


def _files(
    report: Mapping[str, Any], runs: Study, plates: Sequence[plots.Plate]
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


if __name__ == "__main__":
    main()
