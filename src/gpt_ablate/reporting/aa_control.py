"""Controls: repeated runs, which must be identical to the bit, and the noise floor of the A/A control."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from gpt_ablate.config.metrics import Metric
from gpt_ablate.reporting import sentences
from gpt_ablate.studies import comparability, stats, study
from gpt_ablate.studies.comparisons import CONFIDENCE
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.studies.study import Study, StudyRun
from gpt_ablate.utils.errors import UsageError
from gpt_ablate.utils.files import read_json

_OF_THE_CLOCK = {"wall_time", "tokens_per_second", "flop_utilisation"}


def find_noise_floor(of: Study, tell: Callable[[str], object] = lambda _: None) -> Study | None:
    """The A/A control beside a study, in `aa_control-<model>`, if it has the study's recipe.

    None where there is none. A control that is damaged or of another recipe is not used, and `tell` gets the reason.
    """
    folder = of.path.absolute().parent / f"aa_control-{of.runs[0].record['config']['model']['name']}"
    if not folder.is_dir() or folder == of.path.absolute():
        return None
    try:
        control = study.read(folder)
        comparability.check_control(of, control)
    except UsageError as error:
        tell(f"{folder.name} is not used as the noise floor of this study: {error.problems[0]}")
        return None
    return control


def noise_floor(control: Study, metric: Metric) -> dict[str, Any]:
    """The difference in `metric` between the arms of an A/A control, and the standard deviation between its runs.

    The intervals are Student's t of the seed pairs and the chi-square interval of the standard deviation of all runs.
    """
    first, second = (_values(runs, metric) for runs in control.cells().values())
    seeds = sorted(first.keys() & second.keys())
    found = stats.paired([second[seed] - first[seed] for seed in seeds], CONFIDENCE) if seeds else None
    values = [*first.values(), *second.values()]
    spread = stats.summarise(values).sd
    interval = stats.sd_interval(values, CONFIDENCE)
    return {
        "study": control.name,
        "cell": control.runs[0].cell,
        "difference": metric.scaled(found.mean) if found else None,
        "interval": [metric.scaled(bound) for bound in found.interval] if found and found.interval else None,
        "pairs": len(seeds),
        "runs": len(values),
        "sd": spread,
        "sd_interval": list(interval) if interval else None,
        "sentence": _sentence(control, metric, found, values),
    }


def _sentence(control: Study, metric: Metric, found: stats.Difference | None, values: list[float]) -> str:
    who = f"Noise floor ({control.name}), measured on two arms of one cell that differ only in their random numbers"
    pairs, sd, chi = 0 if found is None else found.n, stats.summarise(values).sd, stats.sd_interval(values, CONFIDENCE)
    if found is None or found.interval is None or sd is None or chi is None:
        return f"{who}: not known. {sentences.count(pairs, 'seed pair')} finished; a confidence interval needs two."
    factor, unit = (100, " %") if metric.scale == "ratio" else (1, "")
    bounds = (metric.scaled(found.interval[0]) * factor, metric.scaled(found.interval[1]) * factor)
    mean, low, high = sentences.together(metric.scaled(found.mean) * factor, bounds)
    spread, least, most = sentences.together(sd * factor, (chi[0] * factor, chi[1] * factor))
    return (
        f"{who}: the mean difference in {metric.name} is {mean}{unit} (95 % CI {low}{unit} to {high}{unit}, "
        f"{sentences.count(pairs, 'seed pair')}). The standard deviation between runs is {spread}{unit} (95 % CI "
        f"{least}{unit} to {most}{unit}, {sentences.count(len(values), 'run')})."
    )


def _values(runs: list[StudyRun], metric: Metric) -> dict[int, float]:
    return {run.seed: value for run in runs if (value := metric.statistical(run)) is not None}


def repeats(of: Study) -> list[dict[str, Any]]:
    """Every finished run that repeats another one, with the first difference between their records."""
    groups: dict[tuple[str, int], list[StudyRun]] = {}
    for run in of.runs:
        if run.result is not None:
            groups.setdefault((run.cell, run.seed), []).append(run)
    found = []
    for runs in groups.values():
        first, *others = sorted(runs, key=lambda run: run.repeat)
        for other in others:
            difference = first_difference(first.directory, other.directory)
            found.append(
                {"run": other.name, "of": first.name, "equal": difference is None, "first_difference": difference}
            )
    return found


def first_difference(one: RunDirectory, other: RunDirectory) -> str | None:
    """The first difference between the metrics, samples or final weights of two runs, times apart; None if equal."""
    for name, here, there in (
        ("metrics.jsonl", one.metrics(), other.metrics()),
        ("samples.jsonl", one.samples(), other.samples()),
    ):
        for number, (first, second) in enumerate(itertools.zip_longest(here, there), 1):
            if first is None or second is None:
                return f"{name}: {len(here)} lines against {len(there)}"
            if key := _differing(first, second):
                return f"{name} line {number}: {key} is {first.get(key)!r} against {second.get(key)!r}"
    weights = [directory.checkpoints / "final" / "state.json" for directory in (one, other)]
    if absent := [str(file) for file in weights if not file.exists()]:
        return f"weights not compared, there is no {absent[0]}"
    return "the final weights" if read_json(weights[0]) != read_json(weights[1]) else None


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    keys = [key for key in first.keys() | second.keys() if key not in _OF_THE_CLOCK]
    return next((key for key in sorted(keys) if first.get(key) != second.get(key)), None)
