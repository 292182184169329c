"""From a study to its answer: the content of report.json, from which every page of the report is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from . import __version__, controls, fairness, metrics, provenance, relaunch, summaries, wording
from .comparisons import ALPHA, CONFIDENCE, POWER, Comparison, Kind, compare
from .metrics import Metric
from .registry import Problem, UsageError
from .study import Study

SCHEMA_VERSION = 1
MOST_SENTENCES = 8
"""A family of more comparisons than this is told in sum."""


def analyse(study: Study, allow_missing: bool = False, noise: Study | None = None) -> dict[str, Any]:
    """The report of a study as plain values: answer, cells, comparisons, budgets, controls, what it rests on.

    `noise` is an A/A control, whose noise floor is set beside the effects; a study that is one is its own.
    Raises UsageError for an unknown metric, a study without a finished run, a control of another recipe, and, unless
    `allow_missing`, for runs that are missing, failed or unfinished.
    """
    declared = metrics.declared(study.report)
    primary = declared[0][0]
    _check(study, allow_missing)
    if noise is not None:
        fairness.check_control(study, noise)
    control = study if study.is_control else noise
    compared = {metric.key: compare(study, metric, margin) for metric, margin in declared}
    settings = summaries.tuned_settings(study, primary)
    floor = controls.noise_floor(control, primary) if control else None
    first = (study.cells()[study.baseline] or study.runs)[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "study": study.name,
        "question": study.report["question"],
        "generated_by": f"gpt_ablate {__version__}",
        "metric": primary.describe(),
        "metrics": [metric.describe() | {"margin": margin} for metric, margin in declared],
        "confidence": CONFIDENCE,
        "alpha": ALPHA,
        "power": POWER,
        "factors": study.factors,
        "within": study.within_keys,
        "tune": study.tuned_keys,
        "baseline": study.label(study.baseline),
        "answer": list(_answer(study, compared, settings, floor if control is study else None)),
        "cells": summaries.cells(study),
        "comparisons": [_entry(study, each) for key in compared for each in compared[key]],
        "tuned_settings": settings,
        "budgets": summaries.budgets(study, primary),
        "noise_floor": floor,
        "repeats": controls.repeats(study),
        "references": {key: first.record["data"][key] for key in ("unigram_entropy", "ln_vocab")},
        "rests_on": provenance.rests_on(study, primary),
    }


def _check(study: Study, allow_missing: bool) -> None:
    if not any(run.result is not None for run in study.runs):
        raise UsageError([Problem("study", str(study.path), "a folder with at least one finished run")])
    if allow_missing or not (lacking := provenance.unfinished(study)):
        return
    command = relaunch.again(study)
    launch = f"launch the study again ({command})" if command else "launch the study again"
    allowed = f"complete pairs; not finished: {', '.join(lacking)}. Either {launch} or compare what is there with "
    raise UsageError([Problem("study", study.name, allowed + "--allow-missing")])


def _entry(study: Study, each: Comparison) -> dict[str, Any]:
    """A comparison as report.json has it; on the scale "ratio" all differences are fractions, `sd` is of logarithms."""
    found, scaled = each.statistics, each.metric.scaled
    return {
        "kind": each.kind,
        "label": each.label,
        "reference": each.reference,
        "metric": each.metric.key,
        "seeds": each.seeds,
        "differences": [scaled(difference) for difference in each.differences],
        "difference": scaled(found.mean) if found else None,
        "sd": found.sd if found else None,
        "interval": [scaled(bound) for bound in found.interval] if found and found.interval else None,
        "bca": [scaled(bound) for bound in found.bca] if found and found.bca else None,
        "p": found.p if found else None,
        "p_holm": each.p_holm,
        "margin": each.margin,
        "verdict": each.verdict,
        "detectable": None if each.detectable is None else scaled(each.detectable),
        "pairs_needed": each.pairs_needed,
        "more_seeds": each.more_seeds,
        "command": relaunch.more_seeds(study, each.more_seeds),
        "sentence": wording.sentence(each, each.metric.key == next(iter(study.report["metrics"]))),
    }


def _answer(
    study: Study,
    compared: dict[str, list[Comparison]],
    settings: list[dict[str, Any]] | None,
    floor: dict[str, Any] | None,
) -> Iterator[str]:
    """The answer first, then what of it is missing."""
    primary = next(iter(compared))
    if floor:
        yield floor["sentence"]
    for key, comparisons in compared.items():
        yield from _led(comparisons, key == primary)
    if len(study.levels) == 1:
        yield _alone(study, metrics.METRICS[primary])
    yield from _fates(study)
    yield from _unequal(settings or [])


def _led(comparisons: Sequence[Comparison], primary: bool) -> Iterator[str]:
    """The sentences of the kind that answers best: main effects, then arms at their best, then cells."""
    kinds: dict[Kind, list[Comparison]] = {}
    for each in comparisons:
        kinds.setdefault(each.kind, []).append(each)
    for kind in ("main effect", "tuned", "cell"):
        if leading := kinds.get(kind):
            yield from _told(leading, primary)
            break
    if interactions := kinds.get("interaction"):
        shown = [each for each in interactions if each.verdict in ("better", "worse")]
        yield from _told(shown, primary)
        if rest := len(interactions) - len(shown):
            others = wording.count(rest, f"{'other ' if shown else ''}interaction")
            yield f"Of {others} between two factors, none could be shown."


def _told(comparisons: Sequence[Comparison], primary: bool) -> Iterator[str]:
    if len(comparisons) <= MOST_SENTENCES:
        yield from (wording.sentence(each, primary) for each in comparisons)
        return
    verdicts = [each.verdict for each in comparisons]
    name, reference = comparisons[0].metric.name, comparisons[0].reference
    yield (
        f"Of {len(comparisons)} comparisons by {name} (with {reference} and the like) {verdicts.count('better')} are "
        f"better, {verdicts.count('worse')} worse, {verdicts.count('negligible')} negligible, and "
        f"{verdicts.count('no difference shown')} show no difference."
    )
    sign = 1 if comparisons[0].metric.lower_is_better else -1
    better = [each for each in comparisons if each.verdict == "better" and each.statistics]
    best = min(better, key=lambda each: sign * each.statistics.mean if each.statistics else 0.0, default=None)
    if best:
        yield f"The best of them: {wording.sentence(best, primary)}"


def _alone(study: Study, metric: Metric) -> str:
    """A study of one cell: its mean, and that there is nothing to compare."""
    values = [value for run in study.cells()[study.baseline] if (value := metric.of(run)) is not None]
    runs = wording.count(len(values), "run")
    if not values:
        return f"{study.label(study.baseline)}: no run has a {metric.name}."
    mean = wording.number(sum(values) / len(values), 4)
    return f"{study.label(study.baseline)}: {metric.name} {mean} {metric.unit}, the mean of {runs}; nothing to compare."


def _fates(study: Study) -> Iterator[str]:
    """How many runs of each cell have no final loss, and why: nothing is left out silently."""
    told = {"diverged": "diverged", "failed": "failed", "running": "is not finished", "missing": "is missing"}
    many = told | {"running": "are not finished", "missing": "are missing"}
    missing = Counter(run.cell for run in study.absent if run.repeat == 0)
    for cell, runs in study.cells().items():
        statuses = Counter(run.status for run in runs) + Counter({"missing": missing[cell]})
        for status in told:
            if n := statuses[status]:
                verb = (told if n == 1 else many)[status]
                yield f"{n} of {wording.count(statuses.total(), 'run')} of {study.label(cell)} {verb}."


def _unequal(settings: Sequence[dict[str, Any]]) -> Iterator[str]:
    trials = {each["arm"]: each["trials"] for each in settings}
    if len(set(trials.values())) > 1:
        told = wording.listed([f"{n} for {arm}" for arm, n in trials.items()])
        yield f"Unfair: the arms had unequal numbers of trials ({told}), and more trials find a better best."
