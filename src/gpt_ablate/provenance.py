"""What an answer rests on: runs, versions, hardware, data, and what it does not cover."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .metrics import Metric
from .study import Study, StudyRun
from .summaries import UNITS
from .wording import count, listed, number

COVERS = (
    "The intervals cover what a seed changes: initial values, data order and dropout. They do not cover the choice of "
    "text, of model size or of the recipe. On a text as small as a few thousand tokens the losses tell how fast or how "
    "well a model fits, not how good it is. Seeds added because an earlier report left a comparison open make p-values "
    "smaller than they should be."
)
_TELLING = {"tokens": 0.0, "FLOPs": 0.01, "seconds": 0.05}
"""By what fraction cells must differ in what they spent for it to be said."""


def rests_on(study: Study, metric: Metric) -> dict[str, Any]:
    """The runs that are there and those that are not, by name, and where, when and on what they were made."""
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
    """The cells that lack the metric for a seed which another cell has or was planned to have."""
    seeds = {run.seed for run in study.known}
    found = []
    for cell, runs in study.cells().items() if len(study.levels) > 1 else ():
        has = {run.seed for run in runs if metric.of(run) is not None}
        if has != seeds:
            found.append({"label": study.label(cell), "has": sorted(has), "lacks": sorted(seeds - has)})
    return found


def unfinished(study: Study) -> list[str]:
    """The runs that a complete study would have and this one has not, by name; one that diverged came to its end."""
    names = {(run.cell, run.seed): run.name for run in study.known}
    ended = {(run.cell, run.seed) for runs in study.cells().values() for run in runs if run.result is not None}
    seeds = sorted({seed for _, seed in names})
    lacking = [(cell, seed) for cell in study.levels for seed in seeds if (cell, seed) not in ended]
    return [names.get(place, f"{place[0]}/seed_{place[1]}") for place in lacking] if len(study.levels) > 1 else []


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
    """What makes a comparison less equal than it looks."""
    for unit in UNITS:
        amounts = {
            cell: [_total(run, unit) for run in runs if run.status == "done" and "seconds" in run.curves]
            for cell, runs in study.cells().items()
        }
        means = {study.label(cell): sum(spent) / len(spent) for cell, spent in amounts.items() if spent}
        if means and max(means.values()) > min(means.values()) * (1 + _TELLING[unit]):
            least, most = min(means, key=lambda name: means[name]), max(means, key=lambda name: means[name])
            yield (
                f"The runs differ in {unit}: {number(means[least])} for {least}, {number(means[most])} for {most}; "
                f"the table at equal {unit} takes that away."
            )
    sampled = {run.record["config"]["trainer"].get("eval_batches") for run in study.runs} - {None}
    if sampled:
        batches = listed([count(n, "batch", "batches") for n in sorted(sampled)])
        yield (
            f"Evaluations before the last are over {batches} of each split, the last is over all of it; so are the "
            "values at equal budgets."
        )
    if len({hardware(run.record) for run in study.runs}) > 1:
        yield "The runs were made on different hardware: speed and memory do not compare."


def _total(run: StudyRun, unit: str) -> float:
    assert run.result is not None
    if unit == "seconds":
        return float(run.curves["seconds"].values[-1])
    return float(run.result["tokens" if unit == "tokens" else "flops"])
