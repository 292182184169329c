"""What a study found: `python -m gpt_ablate.report outputs/<study>`, from the files of its runs alone."""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from gpt_ablate import plots, results
from gpt_ablate.registry import Problem, UsageError
from gpt_ablate.runs import RunDirectory, find

METRIC = "eval_train_loss"
"""The number that stands for a run: the task is to fit the text, so its loss on it, whole, without dropout."""


def main() -> None:
    """The command: the table and samples on the terminal; report.md, results.csv and figures beside the runs."""
    parser = argparse.ArgumentParser(prog="python -m gpt_ablate.report", description=__doc__)
    parser.add_argument("study", type=Path, help="a folder that holds runs")
    parser.add_argument("--to", type=Path, help="where to write (default: the study's folder)")
    args = parser.parse_args()
    try:
        write(args.study, args.to or args.study, Console())
    except UsageError as error:
        for problem in error.problems:
            print(f"gpt_ablate: {problem}", file=sys.stderr)
        sys.exit(2)


def write(study: Path, target: Path, console: Console, not_started: int = 0) -> None:
    """Write the report on the runs below `study` into `target`, and show samples, table and findings.

    Raises UsageError if no run is finished.
    """
    runs = list(find(study))
    finished = [run for run in runs if run.finished()]
    if not finished:
        raise UsageError([Problem("study", str(study), "a folder with at least one finished run")])
    target.mkdir(parents=True, exist_ok=True)
    rows = [{"cell": results.cell(run)} | results.row(run.record(), run.result(), results.status(run)) for run in runs]
    with (target / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figures = [target / "figures" / f"loss_curves.{kind}" for kind in ("svg", "png")]
    _figure(finished, figures)
    (target / "report.md").write_text("\n".join(_markdown(study.name, runs, rows)) + "\n", encoding="utf-8")
    for run in _first_of_each_cell(finished):
        for drawn in run.samples()[-1:]:
            console.rule(f"{results.cell(run)}, sample after epoch {drawn['epoch']}", style="dim", align="left")
            console.print(Text.assemble((drawn["prompt"], "bold"), drawn["text"]), soft_wrap=True)
    notes = [*_findings(rows), f"Report: {results.shown(target / 'report.md')}"]
    results.print_summary(runs, study, console, not_started, notes)


def _figure(runs: Sequence[RunDirectory], paths: Sequence[Path]) -> None:
    panels: dict[str, dict[str, list[plots.Curve]]] = {}
    titles = {"train/epoch_loss": "training batches, mean of each epoch", "eval/val_loss": "validation split"}
    for run in runs:
        history = run.metrics()
        for key, title in titles.items():
            if points := plots.curve(history, key):
                panels.setdefault(title, {}).setdefault(results.cell(run), []).append(points)
    data = runs[0].record()["data"]
    plots.loss_curves(panels, data["unigram_entropy"], data["ln_vocab"], paths)


def _markdown(study: str, runs: Sequence[RunDirectory], rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"# {study}\n"
    yield from (f"{line}\n" for line in _findings(rows))
    yield "![Loss curves](figures/loss_curves.svg)\n"
    header = ("cell", "seed", "status", "train", "eval train", "eval val", "best val", "s/step", "tokens/s", "peak GB")
    keys = ("train_epoch_loss", "eval_train_loss", "eval_val_loss", "best_val_loss", "seconds_per_step")
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * 3 + "---:|" * (len(header) - 3)
    for row in rows:
        figures = [_form(row[key], ".4f") for key in keys]
        figures += [_form(row["tokens_per_second"], ".0f"), _form(row["peak_rss_bytes"], ".2f", 1e9)]
        yield f"| {row['cell']} | {row['seed']} | {row['status']} | " + " | ".join(figures) + " |"
    yield "\nLosses in nats per token. train: mean of the last epoch's batches, in training mode; eval: the whole split"
    yield "at the end, without dropout. Unigram entropy of the training split: "
    yield ", ".join(sorted({f"{row['unigram_entropy']:.3f}" for row in rows})) + ".\n"
    yield "## Samples at the end\n"
    for run in runs:
        for line in run.samples()[-1:]:
            quoted = f"{line['prompt']}{line['text']}".replace("\n", "\n> ")
            seed = run.record()["config"]["seed"]
            yield f"{results.cell(run)}, seed {seed}, step {line['step']}:\n\n> {quoted}\n"


def _findings(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One sentence for each cell, and one for each comparison with the first, pair by pair."""
    by_cell: dict[str, dict[int, float]] = {}
    for row in rows:
        if row[METRIC] is not None:
            by_cell.setdefault(row["cell"], {})[row["seed"]] = row[METRIC]
    for cell, losses in by_cell.items():
        mean = statistics.fmean(losses.values())
        spread = f", sd {statistics.stdev(losses.values()):.4f}" if len(losses) > 1 else ""
        yield f"{cell}: final training loss {mean:.4f}{spread} ({_count(len(losses), 'seed')})."
    (baseline, reference), *others = by_cell.items()
    for cell, losses in others:
        pairs = sorted(losses.keys() & reference.keys())
        if pairs:
            differences = [losses[seed] - reference[seed] for seed in pairs]
            each = ", ".join(f"{difference:+.4f}" for difference in differences)
            mean = statistics.fmean(differences)
            yield f"{cell} less {baseline}: {mean:+.4f} ({_count(len(pairs), 'seed pair')}: {each})."


def _first_of_each_cell(runs: Sequence[RunDirectory]) -> Iterator[RunDirectory]:
    seen: set[str] = set()
    for run in runs:
        if (cell := results.cell(run)) not in seen:
            seen.add(cell)
            yield run


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _form(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, form)


if __name__ == "__main__":
    main()
