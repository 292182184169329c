"""Which runs may be compared: those whose recipes differ in what the study varies and in nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gpt_ablate.config.fingerprint import comparable
from gpt_ablate.config.metrics import NATS, Metric
from gpt_ablate.studies.factors import level_of
from gpt_ablate.utils.errors import Problem, UsageError

if TYPE_CHECKING:
    from gpt_ablate.studies.study import Study

_OF_A_RUN = ("seed", "repeat", "arm")
_DATA, _TOKENIZER = "data.sha256", "tokenizer.sha256"
_CUTTING = ("data.batch_size", "data.stride", "data.replacement")
"""Keys of the data on which its hash does not depend."""
_GPT2 = "gpt2"
"""The tokenizer of runs that recorded none."""


class Recorded(Protocol):
    """A run, made or planned, as far as fairness looks."""

    @property
    def name(self) -> str:
        """What a message calls it."""

    @property
    def cell(self) -> str:
        """Runs of one cell may differ in their seeds alone."""

    @property
    def record(self) -> Mapping[str, Any]:
        """`config` and `data` as run.json has them."""


def check(runs: Sequence[Recorded], keys: Sequence[str]) -> None:
    """Raise UsageError, naming every key that differs, if the runs do not make a fair comparison.

    `keys` (axes, swept keys) may differ between two cells, with all that is below them; within a cell nothing may but
    the seed. An absent key and null are the same, so that runs of an older version compare.
    """
    recipes = [recipe(run.record) for run in runs]
    every = sorted({key for each in recipes for key in each})
    anywhere = [key for key in every if not _covered(key, keys)]
    first_of: dict[str, int] = {}
    differing: dict[str, tuple[int, int]] = {}
    for i, run in enumerate(runs):
        first = first_of.setdefault(run.cell, i)
        for other, looked_at in ((0, anywhere), (first, every)):
            if recipes[i] != recipes[other]:
                for key in looked_at:
                    if recipes[i].get(key) != recipes[other].get(key):
                        differing.setdefault(key, (other, i))
    if differing:
        told = {key: [f"{recipes[i].get(key)} in {runs[i].name}" for i in differing[key]] for key in sorted(differing)}
        allowed = "must be the same in all runs that are compared"
        raise UsageError([Problem(key, ", ".join(values), allowed) for key, values in told.items()])


def check_options(recorded: Sequence[Recorded], planned: Sequence[Recorded], keys: Iterable[str]) -> None:
    """Raise UsageError if planned runs choose an option of `keys` that holds the same values as another one.

    One cell would stand in the study under two names. Options of runs that are recorded stay as they are.
    """
    problems = []
    for key in keys:
        called: dict[str, str] = {}
        known = {level_of(run.record, key) for run in recorded}
        for run in (*recorded, *planned):
            if isinstance(node := run.record["config"].get(key), Mapping):
                values = json.dumps({name: value for name, value in node.items() if value is not None}, sort_keys=True)
                name = level_of(run.record, key)
                first = called.setdefault(values, name)
                if first != name and not {first, name} <= known:
                    told = f"options that differ; both are {values}"
                    problems.append(Problem(key, f"{first},{name}", told))
    if problems:
        raise UsageError(problems)


def check_control(study: Study, control: Study) -> None:
    """Raise UsageError, naming what differs, if `control` is no A/A control of the study's recipe.

    Its runs must have the model, data and recipe of the study's; the variants of the axes and what either study
    varies may be others.
    """
    if not control.is_control:
        varies = ", ".join(control.factors) or "nothing"
        raise UsageError([Problem("control", control.name, f"a study of one cell in two arms (it varies {varies})")])
    swept = {*study.factors, *control.factors, *study.runs[0].record["axes"]}
    here, there = (recipe(each.runs[0].record) for each in (study, control))
    problems = [
        Problem(key, f"{there.get(key)} in {control.name}", f"{here.get(key)}, as in {study.name}")
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key) and not _covered(key, swept)
    ]
    if problems:
        raise UsageError(problems)


def check_units(runs: Iterable[Recorded], declared: Iterable[Metric], within: Iterable[str]) -> None:
    """Raise UsageError for a metric in nats per token if runs of different tokenizers would be compared by it.

    `within` are the keys in which only runs that agree are compared.
    """
    tokenizers = {tokenizer_of(run.record) for run in runs}
    if len(tokenizers) == 1 or any(key.partition(".")[0] == "tokenizer" for key in within):
        return
    told = (
        "a metric that tokenizers share: their tokens differ in length, so nats per token cannot be compared; "
        "report.metrics={val_bits_per_byte: 0.02} compares bits per byte, report.within=[tokenizer] each tokenizer's "
        "own runs"
    )
    if problems := [Problem("report.metrics", metric.key, told) for metric in declared if metric.unit == NATS]:
        raise UsageError(problems)


def tokenizer_of(record: Mapping[str, Any]) -> str | None:
    """Hash of a run's tokenizer; None for GPT-2's."""
    chosen = record["config"].get("tokenizer") or {"name": _GPT2}
    return None if chosen["name"] == _GPT2 else record["data"].get("tokenizer_sha256")


def recipe(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's result depends on but for its seed, repeat and arm, flat, without nulls; data by their hashes."""
    flat = {key: value for key, value in comparable(record["config"]).items() if value is not None}
    kept = {key: value for key, value in flat.items() if key not in _OF_A_RUN and not key.startswith("report.")}
    for key, derived in _derived(kept).items():
        if kept.get(key) == derived:
            del kept[key]
    if (tokenizer := tokenizer_of(record)) is not None:
        kept[_TOKENIZER] = tokenizer
    return kept | {_DATA: record["data"]["sha256"]}


def _derived(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What `resolve` fills in where nothing is said; it follows from keys that are compared themselves."""
    return {"data.stride": flat["model.context_length"], "model.mlp_hidden": 4 * flat["model.d_model"]}


def _covered(key: str, keys: Iterable[str]) -> bool:
    """Whether the study varies `key`, a group that it is in, or, for a hash, a key that it depends on."""
    groups = {_DATA: ("data",), _TOKENIZER: ("data", "tokenizer")}.get(key, ())
    decides = (swept for swept in keys if swept.partition(".")[0] in groups and swept not in _CUTTING)
    return any(decides) or any(key == swept or key.startswith(f"{swept}.") for swept in keys)
