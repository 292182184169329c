"""From a study to its answer: the content of report.json, from which all pages of the report are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt_ablate import __version__
from gpt_ablate.config import metrics
from gpt_ablate.config.metrics import Metric
from gpt_ablate.reporting import aa_control, cell_summaries, launch_commands, provenance, sentences
from gpt_ablate.studies import comparability
from gpt_ablate.studies.comparisons import ALPHA, CONFIDENCE, POWER, Comparison, Kind, compare
from gpt_ablate.studies.study import Study
from gpt_ablate.utils.errors import Problem, UsageError

SCHEMA_VERSION = 1
MOST_SENTENCES = 8
"""A family of more comparisons than this is summarised by counts."""


def analyse(study: Study, allow_missing: bool = False, noise: Study | None = None) -> dict[str, Any]:
    """The report of a study as plain values: answer, cells, comparisons, budgets, controls, provenance.

    `noise` is an A/A control, whose noise floor is reported with the effects; a study that is an A/A control is its
    own. Raises UsageError for an unknown metric, a study without a finished run, a control of another recipe, and,
    unless `allow_missing`, for runs that are missing, failed or unfinished.
    """
    own = metrics.of_records((run.record for run in study.runs), study.report["metrics"])
    declared = metrics.declared(study.report, own)
    primary = declared[0][0]
    comparability.check_units(study.runs, [metric for metric, _ in declared], study.within_keys)
    _check(study, allow_missing)
    if noise is not None:
        comparability.check_control(study, noise)
    control = study if study.is_control else noise
    compared = {metric.key: compare(study, metric, margin) for metric, margin in declared}
    settings = cell_summaries.tuned_settings(study, primary)
    floor = _noise_floor(control, primary) if control else None
    checks = [check for metric, _ in declared if (check := cell_summaries.unigram_check(study, metric)) is not None]
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
        "answer": list(_answer(study, primary, compared, checks, settings, floor if control is study else None)),
        "unigram_check": checks,
        "cells": cell_summaries.cells(study, [metric for metric, _ in declared]),
        "comparisons": [_entry(study, each) for key in compared for each in compared[key]],
        "tuned_settings": settings,
        "budgets": cell_summaries.budgets(study, primary),
        "noise_floor": floor,
        "repeats": aa_control.repeats(study),
        "references": {key: first.record["data"][key] for key in ("unigram_entropy", "ln_vocab")},
        "rests_on": provenance.rests_on(study, primary),
    }


def _noise_floor(control: Study, metric: Metric) -> dict[str, Any]:
    return aa_control.noise_floor(control, metric) | {"unigram_check": cell_summaries.unigram_check(control, metric)}


def _check(study: Study, allow_missing: bool) -> None:
    if not any(run.result is not None for run in study.runs):
        raise UsageError([Problem("study", str(study.path), "a folder with at least one finished run")])
    if allow_missing or not (unfinished := provenance.unfinished(study)):
        return
    command = launch_commands.again(study)
    launch = f"launch the study again ({command})" if command else "launch the study again"
    told = f"these runs are not finished: {', '.join(unfinished)}. Either {launch}, or compare the finished runs with "
    raise UsageError([Problem("study", study.name, told + "--allow-missing")])


def _entry(study: Study, each: Comparison) -> dict[str, Any]:
    """A comparison as in report.json.

    On the scale "ratio" all differences are fractions; `sd` and `variance_ratio` are of logarithms.
    """
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
        "variance_ratio": each.variance_ratio,
        "interval": [scaled(bound) for bound in found.interval] if found and found.interval else None,
        "bca": [scaled(bound) for bound in found.bca] if found and found.bca else None,
        "p": found.p if found else None,
        "p_holm": each.p_holm,
        "margin": each.margin,
        "verdict": each.verdict,
        "detectable": None if each.detectable is None else scaled(each.detectable),
        "pairs_needed": each.pairs_needed,
        "more_seeds": each.more_seeds,
        "command": launch_commands.more_seeds(study, each.more_seeds),
        "sentence": sentences.sentence(each),
    }


def _answer(
    study: Study,
    primary: Metric,
    compared: dict[str, list[Comparison]],
    checks: Sequence[Mapping[str, Any]],
    settings: list[dict[str, Any]] | None,
    floor: dict[str, Any] | None,
) -> Iterator[str]:
    """The findings, then what limits them; models that have learned nothing are named before the findings on them."""
    untrained = {check["metric"]: check["sentence"] for check in checks if check["sentence"]}
    for key, comparisons in compared.items():
        if key in untrained:
            yield untrained[key]
        if floor and key == primary.key:
            yield floor["sentence"]
        yield from _findings(comparisons)
    if len(study.levels) == 1:
        yield _alone(study, primary)
    yield from _fates(study)
    yield from _unequal(settings or [])


def _findings(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """The findings of the first kind that there is: main effects, arms at their best settings, cells."""
    kinds: dict[Kind, list[Comparison]] = {}
    for each in comparisons:
        kinds.setdefault(each.kind, []).append(each)
    for kind in ("main effect", "tuned", "cell"):
        if leading := kinds.get(kind):
            yield from _told(leading)
            break
    if interactions := kinds.get("interaction"):
        shown = [each for each in interactions if each.verdict in ("better", "worse")]
        yield from _told(shown)
        negligible = [each for each in interactions if each.verdict == "negligible"]
        if rest := len(interactions) - len(shown):
            counts = {"negligible": len(negligible), "not shown": rest - len(negligible)}
            told = sentences.listed([f"{n} {what}" for what, n in counts.items() if n])
            yield f"{'Other two' if shown else 'Two'}-factor interactions in {interactions[0].metric.name}: {told}."


def _told(comparisons: Sequence[Comparison]) -> Iterator[str]:
    if len(comparisons) <= MOST_SENTENCES:
        yield from (sentences.sentence(each) for each in comparisons)
        return
    verdicts = [each.verdict for each in comparisons]
    references = {each.reference for each in comparisons}
    reference = next(iter(references)) if len(references) == 1 else "the baseline"
    yield (
        f"{len(comparisons)} comparisons of {comparisons[0].metric.name} with {reference}: {verdicts.count('better')} "
        f"better, {verdicts.count('worse')} worse, {verdicts.count('negligible')} negligible, "
        f"{verdicts.count('no difference shown')} with no difference shown."
    )
    sign = 1 if comparisons[0].metric.lower_is_better else -1
    better = [each for each in comparisons if each.verdict == "better" and each.statistics]
    best = min(better, key=lambda each: sign * each.statistics.mean if each.statistics else 0.0, default=None)
    if best:
        yield f"The largest improvement: {sentences.sentence(best)}"


def _alone(study: Study, metric: Metric) -> str:
    """A study of one cell: its mean, and that there is no comparison."""
    values = [value for run in study.cells()[study.baseline] if (value := metric.of(run)) is not None]
    if not values:
        return f"{study.label(study.baseline)}: no run has a {metric.name}."
    mean = sentences.number(sum(values) / len(values), 4)
    runs = "one run" if len(values) == 1 else f"mean of {len(values)} runs"
    return (
        f"{study.label(study.baseline)}: the {metric.name} is {mean} {metric.unit} ({runs}). The study has one cell, "
        "so there is nothing to compare."
    )


def _fates(study: Study) -> Iterator[str]:
    """How many runs of each cell have no final loss, and why."""
    told = {"diverged": "diverged", "failed": "failed", "running": "is not finished", "missing": "is missing"}
    many = told | {"running": "are not finished", "missing": "are missing"}
    missing = Counter(run.cell for run in study.absent if run.repeat == 0)
    for cell, runs in study.cells().items():
        statuses = Counter(run.status for run in runs) + Counter({"missing": missing[cell]})
        for status in told:
            if n := statuses[status]:
                verb = (told if n == 1 else many)[status]
                yield f"{n} of {sentences.count(statuses.total(), 'run')} of {study.label(cell)} {verb}."


def _unequal(settings: Sequence[dict[str, Any]]) -> Iterator[str]:
    trials = {each["arm"]: each["trials"] for each in settings}
    if len(set(trials.values())) > 1:
        told = sentences.listed([f"{n} for {arm}" for arm, n in trials.items()])
        yield (
            f"The comparison is unfair: the arms had unequal numbers of trials ({told}), and an arm with more trials "
            "tends to find a better setting."
        )
