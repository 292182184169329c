"""A study read from its files: runs, what varies among them, what was planned, and whether they may be compared."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt_ablate.config.fingerprint import IMPLIED
from gpt_ablate.config.schema import ReportConfig
from gpt_ablate.studies import comparability, curves, results
from gpt_ablate.studies.curves import Curve
from gpt_ablate.studies.factors import (
    cell_name,
    factors_of,
    groups_in,
    keys_of,
    label,
    level_of,
    named_keys,
    nearest_cell,
    place_of,
    planned_level,
)
from gpt_ablate.studies.records import read_plan
from gpt_ablate.studies.run_directory import STUDY_FILE, RunDirectory, find
from gpt_ablate.utils.errors import Problem, UsageError

_ASKED = ReportConfig().model_dump()
"""What a study asks where it does not say."""


@dataclass(frozen=True)
class StudyRun:
    """One run: what it is in the study, and what it recorded."""

    directory: RunDirectory
    name: str
    cell: str
    levels: dict[str, str]
    seed: int
    repeat: int
    arm: str | None
    status: str
    record: dict[str, Any]
    result: dict[str, Any] | None
    curves: dict[str, Curve]
    last: dict[str, float]
    """The last value of every scalar in metrics.jsonl."""


@dataclass(frozen=True)
class AbsentRun:
    """A run that was planned and of which nothing is there."""

    name: str
    cell: str
    levels: dict[str, str]
    seed: int
    repeat: int


@dataclass(frozen=True)
class Study:
    """All runs below one folder, and what they were to answer."""

    path: Path
    name: str
    plan: dict[str, Any] | None
    runs: list[StudyRun]
    absent: list[AbsentRun]
    report: dict[str, Any]
    factors: dict[str, list[str]]
    baseline: str
    levels: dict[str, dict[str, str]]
    """Cell -> its levels, the baseline first, in the order of the factors' levels."""

    @property
    def missing(self) -> list[str]:
        """Names of the planned runs of which nothing is there."""
        return [run.name for run in self.absent]

    def cells(self) -> dict[str, list[StudyRun]]:
        """The runs of every cell, planned cells without a run included; the baseline first; without repeats."""
        return self._cells

    @cached_property
    def _cells(self) -> dict[str, list[StudyRun]]:
        gathered: dict[str, list[StudyRun]] = {cell: [] for cell in self.levels}
        for run in self.runs:
            if run.repeat == 0:
                gathered[run.cell].append(run)
        return gathered

    @cached_property
    def known(self) -> list[StudyRun | AbsentRun]:
        """Every run that is there or was planned, repeats apart."""
        every: list[StudyRun | AbsentRun] = [*self.runs, *self.absent]
        return [run for run in every if run.repeat == 0]

    @cached_property
    def next_seed(self) -> int:
        """The first seed above all that are there or were planned."""
        return 1 + max(run.seed for run in self.known)

    @cached_property
    def several_tokenizers(self) -> bool:
        """Whether the tokens of runs differ, so that losses are comparable only in bits per byte."""
        return len({comparability.tokenizer_of(run.record) for run in self.runs}) > 1

    @property
    def within_keys(self) -> list[str]:
        """The factors in which compared cells agree."""
        return [key for key in self.factors if key in self.report["within"]]

    @property
    def tuned_keys(self) -> list[str]:
        """The factors whose best level is taken for each arm."""
        return [key for key in self.factors if key in self.report["tune"] and key not in self.within_keys]

    @property
    def crossed_keys(self) -> list[str]:
        """The factors whose effects are asked for."""
        return [key for key in self.factors if key not in (*self.within_keys, *self.tuned_keys, "arm")]

    @property
    def is_control(self) -> bool:
        """Whether this is an A/A control: one cell in two arms whose random streams are their own."""
        return list(self.factors) == ["arm"] and len(self.factors["arm"]) == 2

    def label(self, cell: str) -> str:
        """The cell named by what varies: "norm=pre optimizer.lr=0.001"; its full name where nothing does."""
        return label(self.levels[cell]) or cell


def read(path: Path) -> Study:
    """Read the study in the folder `path`.

    Raises UsageError for a folder without runs, a damaged or unknown file, two runs in one place of the study, a
    baseline that is not in it, and runs whose recipes or data differ in more than what the study varies.
    """
    directories = list(find(path))
    if not directories:
        raise UsageError([Problem("study", str(path), "a folder that holds runs")])
    records = [directory.record() for directory in directories]
    plan = read_plan(path / STUDY_FILE) if os.path.lexists(path / STUDY_FILE) else None
    keys = keys_of(records)
    named = named_keys(records, keys)
    runs = [_run(path, directory, record, keys, named) for directory, record in zip(directories, records, strict=True)]
    _refuse_twins(runs)
    comparability.check(runs, keys)
    absent = _absent(plan, runs, keys, named)
    asked = _asked(plan, runs)
    cells = {run.cell: run.levels for run in _in_planned_order(plan, [*runs, *absent])}
    factors = factors_of(cells.values(), asked["baseline"])
    baseline = nearest_cell(cells, {key: levels[0] for key, levels in factors.items()})
    varying = {cell: {key: levels[key] for key in factors} for cell, levels in cells.items()}
    order = [baseline, *sorted(set(cells) - {baseline}, key=lambda cell: place_of(factors, varying[cell]))]
    return Study(
        path,
        plan["study"] if plan else path.absolute().name,
        plan,
        sorted((replace(run, levels=varying[run.cell]) for run in runs), key=_natural),
        sorted((replace(run, levels=varying[run.cell]) for run in absent), key=_natural),
        asked,
        factors,
        baseline,
        {cell: varying[cell] for cell in order},
    )


def rows(study: Study) -> list[dict[str, Any]]:
    """The rows of results.csv: one for each run, whatever its status, all with the same columns."""
    full = [
        {"run": run.name, "cell": run.cell, **run.levels, "seed": run.seed, "repeat": run.repeat, "arm": run.arm}
        | results.row(run.record, run.result, run.status)
        for run in study.runs
    ]
    full += [
        {"run": run.name, "cell": run.cell, **run.levels, "seed": run.seed, "repeat": run.repeat, "status": "missing"}
        for run in study.absent
    ]
    columns = dict.fromkeys(itertools.chain.from_iterable(full))
    return [dict.fromkeys(columns) | row for row in full]


def _run(root: Path, directory: RunDirectory, record: dict[str, Any], keys: Sequence[str], named: set[str]) -> StudyRun:
    config, result = record["config"], directory.result()
    levels = {key: level_of(record, key) for key in keys}
    cell, seed, arm = cell_name(levels, record["axes"], named), config["seed"], config.get("arm")
    inside = directory.path.relative_to(root).as_posix()
    recorded, last = curves.read(directory)
    return StudyRun(
        directory,
        f"{cell}/seed_{seed}" if inside == "." else inside,
        cell,
        levels,
        seed,
        config.get("repeat", 0),
        None if arm is None else str(arm),
        results.standing(record, result),
        record,
        result,
        recorded,
        last,
    )


def _refuse_twins(runs: Iterable[StudyRun]) -> None:
    """Raise UsageError if two runs have the same cell, seed and repeat: which one counts?"""
    seen: dict[tuple[str, int, int], StudyRun] = {}
    problems = []
    for run in runs:
        first = seen.setdefault((run.cell, run.seed, run.repeat), run)
        if first is not run:
            allowed = f"one run of {run.cell} with seed {run.seed}; {first.name} is one too, move one of them away"
            problems.append(Problem("study", run.name, allowed))
    if problems:
        raise UsageError(problems)


def _absent(
    plan: Mapping[str, Any] | None, runs: Sequence[StudyRun], keys: Sequence[str], named: set[str]
) -> list[AbsentRun]:
    """The planned runs that are neither in their place nor, by fingerprint, in another."""
    there = {run.name for run in runs} | {(run.record["fingerprint"], run.repeat) for run in runs}
    groups, unswept = groups_in([run.record for run in runs], keys), {key: _unswept(runs, key) for key in keys}
    absent = []
    for planned in plan["runs"] if plan else []:
        implied = {axis: variant["name"] for axis, variant in IMPLIED.items()}
        recorded, repeat = implied | planned["levels"], int(planned["levels"].get("repeat", 0))
        if planned["path"] in there or (planned["fingerprint"], repeat) in there:
            continue
        levels = {key: planned_level(groups, key, recorded[key]) if key in recorded else unswept[key] for key in keys}
        cell = cell_name(levels, runs[0].record["axes"], named)
        absent.append(AbsentRun(planned["path"], cell, levels, planned["seed"], repeat))
    return absent


def _unswept(runs: Sequence[StudyRun], key: str) -> str:
    """The level of a key in the runs of the launches that did not sweep it, which therefore do not name it."""
    return next((run.levels[key] for run in runs if key not in run.record["config"].get("cell_keys", [])), "unknown")


def _asked(plan: Mapping[str, Any] | None, runs: Sequence[StudyRun]) -> dict[str, Any]:
    """The study's `report` section: its plan's, or else that of the run that started last."""
    latest = max(runs, key=lambda run: str(run.record["start"]))
    section = plan["report"] if plan else latest.record["config"].get("report", {})
    return _ASKED | {key: value for key, value in section.items() if value is not None}


def _in_planned_order(
    plan: Mapping[str, Any] | None, runs: Sequence[StudyRun | AbsentRun]
) -> list[StudyRun | AbsentRun]:
    """As the launch would have come to them; what no plan names comes last, by name."""
    places = {planned["path"]: place for place, planned in enumerate(plan["runs"] if plan else [])}
    return sorted(runs, key=lambda run: (places.get(run.name, len(places)), *_natural(run)))


def _natural(run: StudyRun | AbsentRun) -> tuple[str, int, str]:
    """By cell, then seed, not as text: seed_2 before seed_10."""
    return run.cell, run.seed, run.name
