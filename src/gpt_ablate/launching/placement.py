"""The runs of a launch against their data, the study that they join, and one another."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_ablate.config import metrics, registry
from gpt_ablate.config.fingerprint import flatten
from gpt_ablate.config.schema import Config
from gpt_ablate.launching import hydra_settings
from gpt_ablate.studies import comparability, factors
from gpt_ablate.studies.run_directory import RunDirectory, described, find
from gpt_ablate.training import hardware_rules
from gpt_ablate.utils.errors import Problem, UsageError

if TYPE_CHECKING:
    from gpt_ablate.data.corpus import Corpus


@dataclass(frozen=True)
class PlannedRun:
    """One run of a launch: its checked config and its place."""

    config: Config
    directory: RunDirectory
    overrides: list[str]
    fingerprint: str = ""


def place(runs: list[PlannedRun], study: Path | None) -> list[PlannedRun]:
    """The runs with their fingerprints, each in the folder that its cell has.

    Raises UsageError if data is lacking, two runs share a folder, another run lives in one, or
    the study has runs that these could not be compared with.
    """
    from gpt_ablate.data import loading

    problems: list[Problem] = []
    places: dict[Path, PlannedRun] = {}
    checked, recipes = [], []
    cells = _recorded_cells(study) if study else {}
    for planned in runs:
        run, corpus = planned, None
        problems += hydra_settings.misplaced(run.directory.path, study) if study else []
        try:
            corpus = loading.load(run.config)
            hashes = {"sha256": corpus.sha256, "tokenizer_sha256": corpus.tokenizer.sha256}
            record = described(run.config, run.overrides) | {"data": hashes}
            if study and (folder := cells.get(_cell_of(record))):
                run = _moved(run, folder, study)
        except UsageError as error:
            problems += error.problems
        first = places.setdefault(run.directory.path, run)
        if first is not run:
            keys = _differing(first.config, run.config)
            allowed = f"two runs would share this folder; name what differs: 'cell_keys=[{','.join(keys)}]'"
            problems.append(Problem("cell_keys", str(run.directory.path), allowed))
        if corpus is None:
            continue
        try:
            recipes.append(_recipe(run.directory, record))
            checked.append(_checked(run, corpus))
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    if study is not None:
        _check_fairness(recipes, study, runs[0].config)
    return checked


def _checked(run: PlannedRun, corpus: Corpus) -> PlannedRun:
    """The run with its fingerprint. Raises UsageError if its place or this machine cannot take it."""
    from gpt_ablate.launching import execution
    from gpt_ablate.training import budgets, sampling

    fingerprint = execution.fingerprint(run.config, corpus)
    run.directory.check_place()
    if run.config.trainer.resume != "restart":
        run.directory.check(fingerprint, run.config, corpus.stored_sha256)
    vocab_size = corpus.tokenizer.vocab_size
    if problems := [
        *(hardware_rules.model_memory(run.config, vocab_size) or hardware_rules.batch_memory(run.config, vocab_size)),
        *sampling.check(run.config, corpus),
    ]:
        raise UsageError(problems)
    budgets.check(run.config, vocab_size)
    return replace(run, fingerprint=fingerprint)


def _recorded_cells(study: Path) -> dict[str, Path]:
    """The folder of every cell that a study has runs of, whatever the launch of these called it."""
    found: dict[str, Path] = {}
    for run in find(study):
        if run.path.name.startswith("seed_"):
            found.setdefault(_cell_of(run.record()), run.path.parent)
    return found


def _cell_of(record: Mapping[str, Any]) -> str:
    """What the runs of one cell have in common."""
    config = record["config"]
    return json.dumps([comparability.recipe(record), config.get("arm"), config.get("repeat", 0)], sort_keys=True)


def _moved(run: PlannedRun, folder: Path, study: Path) -> PlannedRun:
    """The run in `folder`, which its cell has already."""
    path = run.directory.path
    if folder == path.parent or not path.name.startswith("seed_"):
        return run
    subdir = Path(os.path.relpath(folder / path.name, study)).as_posix()
    overrides = [*run.overrides, f"hydra.sweep.subdir='{subdir}'"]
    return replace(run, directory=RunDirectory(folder / path.name), overrides=overrides)


@dataclass(frozen=True)
class _Recipe:
    """A run as fairness looks at it."""

    name: str
    cell: str
    record: dict[str, Any]


def _recipe(directory: RunDirectory, record: dict[str, Any]) -> _Recipe:
    return _Recipe(directory.name, directory.path.parent.name, record)


def _check_fairness(planned: list[_Recipe], study: Path, config: Config) -> None:
    """Raise UsageError if the planned runs and those of the study differ in what no launch varies.

    So it is if the baseline that is asked for would be none of their levels.
    """
    names = {recipe.name for recipe in planned}
    recorded = [_recipe(run, run.record()) for run in find(study)]
    together = [*(recipe for recipe in recorded if recipe.name not in names), *planned]
    swept = {key for recipe in together for key in recipe.record["config"].get("cell_keys", [])}
    comparability.check(together, [*registry.axis_names(), *sorted(swept), "arm"])
    comparability.check_options(recorded, planned, [*registry.axis_names(), *sorted(swept)])
    keys = factors.keys_of([recipe.record for recipe in together])
    cells = [{key: factors.level_of(recipe.record, key) for key in keys} for recipe in together]
    factors.factors_of(cells, dict(config.report.baseline))
    declared = metrics.declared({"metrics": config.report.metrics}, metrics.of_config(config))
    comparability.check_units(together, [metric for metric, _ in declared], config.report.within)


def _differing(one: Config, other: Config) -> list[str]:
    first, second = flatten(one.record()), flatten(other.record())
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
