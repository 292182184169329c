"""How the runs of a study stand: `python -m gpt_ablate.status outputs/<study>`, from their files alone."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpt_ablate import results, streams
from gpt_ablate.files import object_in
from gpt_ablate.records import read_plan
from gpt_ablate.refusal import refusals, visible
from gpt_ablate.registry import Problem, UsageError
from gpt_ablate.runs import STUDY_FILE, RunDirectory, find

_SECONDS_BETWEEN_LOOKS = 2
_TAIL_BYTES = 1 << 14
_UNFINISHED = ("running", "waiting", "interrupted")


@dataclass(frozen=True)
class Standing:
    """One run now; `remaining` in seconds, None where there is nothing to tell it by."""

    name: str
    status: str
    step: int | None
    steps: int | None
    line: dict[str, Any]
    remaining: float | None
    wall_time: float | None
    error: str | None = None


@streams.outlive(needed=True)
def main() -> None:
    """The command: a table that follows the runs until none goes on; once, where the output is no terminal."""
    parser = argparse.ArgumentParser(prog="python -m gpt_ablate.status", description=__doc__)
    parser.add_argument("study", type=Path, help="a folder that holds runs")
    args = parser.parse_args()
    console = streams.console()
    with refusals():
        standings = look(args.study)
        if not console.is_terminal:
            console.print(table(standings))
            return
        try:
            with Live(table(standings), console=console, auto_refresh=False) as live:
                while any(standing.status == "running" for standing in standings):
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                    standings = look(args.study)
                    live.update(table(standings), refresh=True)
        except KeyboardInterrupt:
            pass


def look(study: Path) -> list[Standing]:
    """Every run of the study, planned ones among them, by name. Raises UsageError if there is none."""
    plan = read_plan(study / STUDY_FILE)["runs"] if (study / STUDY_FILE).exists() else []
    found = {os.path.relpath(run.path, study): run for run in find(study)}
    names = sorted({*found, *(run["path"] for run in plan)})
    if not names:
        raise UsageError([Problem("study", str(study), "a folder that holds runs")])
    return [_standing(name, found.get(name)) for name in names]


def _standing(name: str, run: RunDirectory | None) -> Standing:
    if run is None:
        return Standing(name, "waiting", None, None, {}, None, None)
    status, record = results.status(run), run.record()
    if status == "running" and not run.busy():
        status = "interrupted"
    line = _last_line(run.metrics_file)
    step, steps = line.get("step"), record.get("total_steps")
    remaining = None
    if step and steps and status in _UNFINISHED:
        remaining = (steps - step) * line["wall_time"] / step
    error = record["error"].strip().splitlines()[-1] if status == "failed" and record["error"] else None
    return Standing(name, status, step, steps, line, remaining, line.get("wall_time"), error)


def _last_line(metrics: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl, read from its end; empty where there is none."""
    if not metrics.is_file():
        return {}
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
        whole = file.read().rpartition(b"\n")[0]
    last = whole.rpartition(b"\n")[2]
    return object_in(last, str(metrics)) if last else {}


def table(standings: list[Standing]) -> Table:
    """The runs as a table, how many are finished and when the rest may be, below it."""
    shown = Table(box=None, pad_edge=False, header_style="bold", caption=_caption(standings), caption_justify="left")
    for title in ("run", "status", "step", "train loss", "tokens/s", "left"):
        named = title in ("run", "status")
        shown.add_column(title, justify="left" if named else "right", overflow="fold", no_wrap=not named)
    for standing in standings:
        line = standing.line
        shown.add_row(
            Text(visible(standing.name)),
            Text(f"{standing.status}: {visible(standing.error)}" if standing.error else standing.status),
            "" if standing.step is None else f"{standing.step}/{standing.steps or '?'}",
            f"{line['train/loss']:.4f}" if "train/loss" in line else "",
            f"{line['tokens_per_second']:,.0f}" if "tokens_per_second" in line else "",
            _duration(standing.remaining),
        )
    return shown


def _caption(standings: list[Standing]) -> str:
    """How many runs are finished, and the time the others need at the pace and number of those that go on."""
    open_runs = [standing for standing in standings if standing.status in _UNFINISHED]
    told = f"{len(standings) - len(open_runs)} of {len(standings)} runs are at their end"
    times = [s.wall_time for s in standings if s.status == "done" and s.wall_time]
    times += [s.wall_time + s.remaining for s in open_runs if s.wall_time and s.remaining is not None]
    going = sum(standing.status == "running" for standing in standings)
    if not (open_runs and times and going):
        return told
    whole = sum(times) / len(times)
    work = sum(whole if s.remaining is None else s.remaining for s in open_runs)
    return f"{told}; about {_duration(work / going)} for the others, {going} at a time"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    main()
