"""Provenance of the results: runs, versions, hardware, data, and the limits of the intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpt_ablate.config.metrics import Metric
from gpt_ablate.reporting.cell_summaries import UNITS
from gpt_ablate.reporting.sentences import count, listed, number
from gpt_ablate.studies.study import Study, StudyRun

COVERS = (
    "The intervals cover what a seed changes: initial values, data order and dropout. They do not cover the choice of "
    "text, model size or training recipe. On a text of a few thousand tokens, the losses measure how fast and how well "
    "a model fits that text, not the quality of the model. If seeds were added because an earlier report showed no "
    "difference, the p-values are too small (optional stopping)."
)
_NOTED = {"tokens": 0.0, "FLOPs": 0.01, "seconds": 0.05}
"""Relative differences between cells in tokens, FLOPs and seconds above which a note is made."""


def rests_on(study: Study, metric: Metric) -> dict[str, Any]:
    """The runs that exist and those that are missing, by name, with their data, versions and hardware."""
    first = study.cells()[study.baseline] or study.runs
    data = first[0].record["data"]
    return {
        "runs": len(study.runs),
        "seeds": sorted({run.seed for run in study.runs}),
        "missing": study.missing,
        "failed": [{"name": run.name, "error": _last_line(run.record.get("error"))} for run in _with(study, "failed")],
        "diverged": [run.name for run in _with(study, "diverged")],
        "running": [run.name for run in _with(study, "running")],
        "incomplete_pairs": incomplete_pairs(study, metric),
        "versions": _versions(study.runs),
        "hardware": sorted({hardware(run.record) for run in study.runs}),
        "hardware_differs": len({hardware(run.record) for run in study.runs}) > 1,
        "git_commits": sorted({run.record["git_commit"] for run in study.runs if run.record.get("git_commit")}),
        "fingerprints": {run.name: run.record["fingerprint"] for run in study.runs},
        "data": {key: data[key] for key in ("sha256", "train_tokens", "val_tokens")},
        "covers": COVERS,
        "notes": list(_notes(study)),
    }


def incomplete_pairs(study: Study, metric: Metric) -> list[dict[str, Any]]:
    """The cells without a value of the metric for a seed that another cell has or was planned to have."""
    seeds = {run.seed for run in study.known}
    found = []
    for cell, runs in study.cells().items() if len(study.levels) > 1 else ():
        has = {run.seed for run in runs if metric.of(run) is not None}
        if has != seeds:
            found.append({"label": study.label(cell), "has": sorted(has), "lacks": sorted(seeds - has)})
    return found


def unfinished(study: Study) -> list[str]:
    """The runs, by name, that are missing or not finished; a diverged run counts as finished."""
    names = {(run.cell, run.seed): run.name for run in study.known}
    ended = {(run.cell, run.seed) for runs in study.cells().values() for run in runs if run.result is not None}
    seeds = sorted({seed for _, seed in names})
    absent = [(cell, seed) for cell in study.levels for seed in seeds if (cell, seed) not in ended]
    folders = {run.cell: run.name.rpartition("/")[0] for run in study.known if "/" in run.name}
    placed = {(cell, seed): f"{folders.get(cell, cell)}/seed_{seed}" for cell, seed in absent}
    return [names.get(place, placed[place]) for place in absent] if len(study.levels) > 1 else []


def hardware(record: Mapping[str, Any]) -> str:
    """A run's machine in a few words: "AMD EPYC, 2 cores, 2 threads, 25 GB"."""
    known = record.get("hardware", {})
    parts = [str(known.get("processor") or known.get("machine") or "unknown")]
    parts += [count(known[f"{one}s"], one) for one in ("core", "thread") if known.get(f"{one}s")]
    parts += [f"{known['memory_bytes'] / 1e9:.0f} GB"] if known.get("memory_bytes") else []
    return ", ".join([*parts, *known.get("gpus", [])])


def _with(study: Study, status: str) -> list[StudyRun]:
    return [run for run in study.runs if run.status == status]


def _last_line(error: str | None) -> str | None:
    return error.strip().splitlines()[-1] if error and error.strip() else None


def _versions(runs: Iterable[StudyRun]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for run in runs:
        for package, version in run.record.get("versions", {}).items():
            found.setdefault(package, set()).add(version)
    return {package: sorted(versions) for package, versions in found.items()}


def _notes(study: Study) -> Iterable[str]:
    """What makes the cells less comparable than they look."""
    for unit in UNITS:
        amounts = {
            cell: [_total(run, unit) for run in runs if run.status == "done" and "seconds" in run.curves]
            for cell, runs in study.cells().items()
        }
        means = {study.label(cell): sum(spent) / len(spent) for cell, spent in amounts.items() if spent}
        if means and max(means.values()) > min(means.values()) * (1 + _NOTED[unit]):
            least, most = min(means, key=lambda name: means[name]), max(means, key=lambda name: means[name])
            yield (
                f"The cells differ in {unit}: {number(means[least])} for {least} and {number(means[most])} for {most}. "
                f'The section "At equal budgets" compares them at equal {unit}.'
            )
    sampled = {run.record["config"]["trainer"].get("eval_batches") for run in study.runs} - {None}
    if sampled:
        batches = listed([count(n, "batch", "batches") for n in sorted(sampled)])
        yield (
            f"The last evaluation of a run uses all of each split; earlier evaluations use {batches} of each split. "
            "Losses at equal budgets are interpolated between evaluations."
        )
    if len({hardware(run.record) for run in study.runs}) > 1:
        yield "The runs were made on different hardware, so their speed and memory cannot be compared."


def _total(run: StudyRun, unit: str) -> float:
    assert run.result is not None
    if unit == "seconds":
        return float(run.curves["seconds"].values[-1])
    return float(run.result["tokens" if unit == "tokens" else "flops"])
