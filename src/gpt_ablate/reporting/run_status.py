"""How the runs of a study stand, from their files alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from gpt_ablate.studies import results
from gpt_ablate.studies.records import check_metrics, read_plan
from gpt_ablate.studies.run_directory import STUDY_FILE, RunDirectory, find
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import misplaced, object_in
from gpt_ablate.utils.messages import visible
from gpt_ablate.utils.texts import universal_bytes

_TAIL_BYTES = 1 << 14
_UNFINISHED = ("running", "waiting", "interrupted")
_FIRST = ("running", "interrupted", "failed", "diverged", "waiting", "done")
"""Which runs a screen shows where it has not room for all."""
_WIDEST = 100
"""Columns of a line that a name or an error is given room for; a longer one moves what comes after it."""
_TITLES = ("run", "status", "step", "train loss", "tokens/s", "left")


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


def look(study: Path) -> list[Standing]:
    """Every run of the study, planned ones among them, by name. Raises UsageError if there is none."""
    plan = read_plan(study / STUDY_FILE)["runs"] if os.path.lexists(study / STUDY_FILE) else []
    found = {os.path.relpath(run.path, study): run for run in find(study)}
    names = sorted({*found, *(run["path"] for run in plan)})
    if not names:
        raise UsageError([Problem("study", str(study), "a folder that holds runs")])
    return [_standing(name, found.get(name)) for name in names]


def _standing(name: str, run: RunDirectory | None) -> Standing:
    if run is None:
        return Standing(name, "waiting", None, None, {}, None, None)
    record = run.record()
    status = results.standing_now(run, record, run.result())
    line = _last_line(run.metrics_file)
    step, steps = line.get("step"), record.get("total_steps")
    remaining = None
    if step and steps and "wall_time" in line and status in _UNFINISHED:
        remaining = max(0, steps - step) * line["wall_time"] / step
    error = record["error"].strip().splitlines()[-1] if status == "failed" and record["error"] else None
    return Standing(name, status, step, steps, line, remaining, line.get("wall_time"), error)


def _last_line(metrics: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl, read from its end; empty where there is none."""
    if not os.path.lexists(metrics):
        return {}
    if taken := misplaced(files=[metrics]):
        raise UsageError(taken)
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
        whole = universal_bytes(file.read()).rpartition(b"\n")[0]
    last = whole.rpartition(b"\n")[2]
    if not last:
        return {}
    line = object_in(last, str(metrics))
    check_metrics(line, f"{metrics} (its last line)")
    return line


def table(standings: list[Standing], most: int) -> Table:
    """At most so many of the runs as a table for a screen; below it what is left out, and when all may be finished."""
    kept = set(sorted(range(len(standings)), key=lambda i: _FIRST.index(standings[i].status))[:most])
    left_out = [each for i, each in enumerate(standings) if i not in kept]
    lines = [*([f"not shown: {_counts(left_out)}"] if left_out else []), _caption(standings)]
    shown = Table(box=None, pad_edge=False, header_style="bold", caption="\n".join(lines), caption_justify="left")
    for title in _TITLES:
        named = title in ("run", "status")
        shown.add_column(title, justify="left" if named else "right", overflow="fold", no_wrap=not named)
    for i in sorted(kept):
        shown.add_row(*map(Text, _row(standings[i])))
    return shown


def aligned(standings: list[Standing]) -> Iterator[str]:
    """The titles and every run, a line each however long, in columns: for files and pipes."""
    rows = [_TITLES, *map(_row, standings)]
    widths = [min(_WIDEST, max(map(cell_len, column))) for column in zip(*rows, strict=True)]
    for row in rows:
        gaps = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
        padded = [text + gap if i < 2 else gap + text for i, (text, gap) in enumerate(zip(row, gaps, strict=True))]
        yield "  ".join(padded).rstrip()


def _row(standing: Standing) -> tuple[str, ...]:
    line = standing.line
    return (
        visible(standing.name).replace("\n", "\\n"),
        f"{standing.status}: {visible(standing.error)}" if standing.error else standing.status,
        "" if standing.step is None else f"{standing.step}/{standing.steps or '?'}",
        f"{line['train/loss']:.4f}" if "train/loss" in line else "",
        f"{line['tokens_per_second']:,.0f}" if "tokens_per_second" in line else "",
        _duration(standing.remaining),
    )


def _counts(standings: list[Standing]) -> str:
    """ "18,000 waiting, 12 done"."""
    counted = Counter(each.status for each in standings)
    return ", ".join(f"{counted[status]:,} {status}" for status in _FIRST if status in counted)


def _caption(standings: list[Standing]) -> str:
    """How many runs are finished, and the time the others need at the pace and number of those that go on."""
    open_runs = [standing for standing in standings if standing.status in _UNFINISHED]
    told = f"{len(standings) - len(open_runs)} of {len(standings)} runs have ended"
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
