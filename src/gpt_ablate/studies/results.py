"""Runs side by side: the rows of results.csv and the table on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_ablate.config.metrics import bits_per_byte
from gpt_ablate.studies.factors import cell_name, level_of
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.utils.messages import visible


def status(directory: RunDirectory) -> str:
    """running, done, failed or diverged; missing where nothing was written. Done means that there is a result."""
    return standing(directory.record(), directory.result()) if directory.run_file.exists() else "missing"


def standing(record: Mapping[str, Any], result: Mapping[str, Any] | None) -> str:
    """The status that a run's files give it: running until there is a result, unless it failed."""
    if result is not None:
        return str(result["status"])
    return "failed" if record["status"] == "failed" else "running"


def standing_now(directory: RunDirectory, record: Mapping[str, Any], result: Mapping[str, Any] | None) -> str:
    """As `standing`, but "interrupted" where a run has not ended and no process trains it."""
    found = standing(record, result)
    return "interrupted" if found == "running" and not directory.busy() else found


def cell(directory: RunDirectory) -> str:
    """The run's cell: its variants, or the name of the folder that a sweep gave it."""
    seeded = directory.path.name.startswith("seed_")
    if seeded:
        return directory.path.parent.name
    axes = directory.record()["axes"]
    return cell_name(axes, axes, ())


def row(record: Mapping[str, Any], result: Mapping[str, Any] | None, status: str) -> dict[str, Any]:
    """One run as a flat record: what was chosen, and what came of it; losses in nats per token, times in seconds."""
    config, result = record["config"], result or {}
    final = result["final"] if status == "done" else {}  # a run that diverged has no final loss
    best = result.get("best", {}).get("eval/val_loss") or {}
    return {
        **{axis: level_of(record, axis) for axis in record["axes"]},
        "seed": config["seed"],
        "status": status,
        "model": level_of(record, "model"),
        "dropout": config["model"]["dropout"],
        "lr": config["optimizer"]["lr"],
        "steps": result.get("step"),
        "train_epoch_loss": final.get("train/epoch_loss"),
        "eval_train_loss": final.get("eval/train_loss"),
        "eval_val_loss": final.get("eval/val_loss"),
        "val_bits_per_byte": bits_per_byte(final.get("eval/val_loss"), record["data"]),
        "best_val_loss": best.get("value"),
        "best_val_step": best.get("step"),
        "unigram_entropy": record["data"]["unigram_entropy"],
        "parameters": result.get("parameters"),
        "flops_per_token": result.get("flops_per_token"),
        "tokens": result.get("tokens"),
        "flops": result.get("flops"),
        "seconds_per_step": result.get("seconds_per_step"),
        "tokens_per_second": result.get("tokens_per_second"),
        "peak_rss_bytes": result.get("peak_rss_bytes"),
        "wall_time": result.get("wall_time"),
        "fingerprint": record["fingerprint"],
        "git_commit": record["git_commit"],
        "torch": record.get("versions", {}).get("torch"),
    }


def print_summary(
    runs: Sequence[RunDirectory], root: Path, console: Console, not_started: int = 0, notes: Sequence[str] = ()
) -> None:
    """The table of these runs, what their losses compare with, `notes`, and where everything is."""
    rows = [{"cell": cell(run)} | row(run.record(), run.result(), status(run)) for run in runs]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("cell", "seed", "status", "train", "eval\ntrain", "eval\nval", "tokens/s", "memory", "time"):
        named = title in ("cell", "status")
        table.add_column(title, justify="left" if named else "right", no_wrap=title != "cell", overflow="fold")
    for each in rows:
        table.add_row(
            Text(visible(each["cell"])),
            str(each["seed"]),
            each["status"],
            *(_number(each[key], ".4f") for key in ("train_epoch_loss", "eval_train_loss", "eval_val_loss")),
            _number(each["tokens_per_second"], ",.0f"),
            _number(each["peak_rss_bytes"], ".2f", 1e9, " GB"),
            _number(each["wall_time"], ".0f", 1, " s"),
        )
    console.print()
    console.print(table)
    console.print()
    missing = [f"Not started: {not_started}"] if not_started else []
    for line in [*missing, *_legend(rows), *notes, *_places(root)]:
        console.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def _legend(rows: list[dict[str, Any]]) -> Iterable[str]:
    if rows:
        entropies = sorted({f"{each['unigram_entropy']:.3f}" for each in rows})
        yield "Losses are in nats per token. train: mean over the batches of the last epoch."
        yield "eval: whole split, without dropout."
        yield f"The loss of the token frequencies alone (unigram entropy, training split): {' or '.join(entropies)}."


def _places(root: Path) -> Iterable[str]:
    yield f"Records, samples and weights: {shown(root)}"
    yield f"Curves and samples: tensorboard --logdir {shlex.quote(shown(root))} --samples_per_plugin text=1000"


def shown(path: Path) -> str:
    """A path as a person would type it here."""
    whole = path.absolute()
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole)


def _number(value: float | None, form: str, unit: float = 1, suffix: str = "") -> str:
    return "-" if value is None else format(value / unit, form) + suffix
