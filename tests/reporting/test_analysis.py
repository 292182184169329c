"""From a study to its answer: verdicts, sentences, what is missing and what would settle it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel
from statsmodels.stats.power import TTestPower
from synthetic import LN_VOCAB, Levels, Shape, make_study

from gpt_ablate.reporting import sentences
from gpt_ablate.reporting.analysis import analyse
from gpt_ablate.studies import study
from gpt_ablate.utils.errors import UsageError

NORMS = {"norm": ["post", "pre"]}
POST = {"baseline": {"norm": "post"}}


def differing(differences: Sequence[float], base: float = 5.5) -> Callable[[Levels, int], float]:
    """A loss by which norm=pre differs from norm=post by so much for seed 0, 1, ..."""
    return lambda levels, seed: base + 0.1 * seed + (differences[seed] if levels["norm"] == "pre" else 0.0)


def report(root: Path, allow_missing: bool = False) -> dict[str, Any]:
    """The report of a study, which must be JSON."""
    found = analyse(study.read(root), allow_missing)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_a_difference_leads_in_words_and_agrees_with_scipy(tmp_path: Path) -> None:
    differences = [-5.3, -5.1, -5.5, -5.25, -5.35]
    found = report(make_study(tmp_path / "s", NORMS, range(5), differing(differences), report=POST))
    assert found["answer"] == [
        "norm=pre reaches a final training loss 5.30 lower than norm=post (95 % CI 5.12 to 5.48, 5 seed pairs, "
        "Holm-adjusted p < 0.001)."
    ]
    (entry,) = found["comparisons"]
    post = [5.5 + 0.1 * seed for seed in range(5)]
    reference = ttest_rel([p + d for p, d in zip(post, differences, strict=True)], post)
    assert entry["p"] == pytest.approx(reference.pvalue)
    assert entry["interval"] == pytest.approx(list(reference.confidence_interval(0.95)))
    assert (entry["verdict"], entry["seeds"], entry["pairs_needed"], entry["command"]) == (
        "better",
        [0, 1, 2, 3, 4],
        None,
        None,
    )


def test_negligible_is_inside_the_margin_though_it_can_be_shown(tmp_path: Path) -> None:
    found = report(make_study(tmp_path / "s", NORMS, range(4), differing([0.020, 0.021, 0.019, 0.024]), report=POST))
    assert found["comparisons"][0]["p_holm"] < 0.001
    assert found["answer"] == [
        "norm=pre against norm=post: the difference in final training loss is negligible. The mean difference is "
        "0.021, and its 95 % CI (0.018 to 0.024, 4 seed pairs) lies inside the declared margin of ±0.05."
    ]


def test_one_pair_has_no_interval(tmp_path: Path) -> None:
    found = report(make_study(tmp_path / "s", NORMS, [0], differing([-5.3]), report=POST))
    (entry,) = found["comparisons"]
    assert (entry["interval"], entry["p"], entry["sd"], entry["verdict"]) == (None, None, None, "no difference shown")
    assert found["answer"] == [
        "norm=pre reaches a final training loss 5.30 lower than norm=post in the only seed pair (seed 0). One "
        "pair gives no confidence interval, so no difference is shown."
    ]


def test_ratios_are_told_in_percent_and_more_speed_is_better(tmp_path: Path) -> None:
    asked = POST | {"metrics": {"tokens_per_second": 0.02, "peak_memory_bytes": 0.02}}

    def speed(levels: Levels, seed: int) -> float:
        return 1000 * (1 + seed / 10) * (1.2 + seed / 100 if levels["norm"] == "pre" else 1)

    found = report(make_study(tmp_path / "s", NORMS, range(3), report=asked, shape=Shape(tokens_per_second=speed)))
    first, second = found["comparisons"]
    logs = np.log([1.2, 1.21, 1.22])
    assert first["verdict"] == "better"
    assert first["difference"] == pytest.approx(math.expm1(logs.mean()))
    assert first["differences"] == pytest.approx([0.2, 0.21, 0.22])
    assert found["answer"][0] == (
        "norm=pre has a training speed 21 % higher than norm=post (95 % CI 19 % to 24 %, 3 seed pairs, "
        "Holm-adjusted p < 0.001)."
    )
    assert second["verdict"] == "negligible"
    assert "inside the declared margin of ±2 %" in found["answer"][1]


def test_holm_and_the_power_are_over_the_cells_of_the_study(tmp_path: Path) -> None:
    shifts = {"post": 0.0, "pre": -1.0, "sandwich": 0.05}

    def loss(levels: Levels, seed: int) -> float:
        return 5 + shifts[str(levels["norm"])] + 0.05 * math.sin(7 * seed + len(str(levels["norm"])))

    root = make_study(tmp_path / "s", {"norm": list(shifts)}, range(4), loss, report=POST)
    pre, sandwich = report(root)["comparisons"]
    assert (pre["label"], sandwich["label"]) == ("norm=pre", "norm=sandwich")
    assert pre["p_holm"] == pytest.approx(2 * pre["p"])
    assert sandwich["p_holm"] == pytest.approx(sandwich["p"])
    strict = TTestPower().solve_power(nobs=4, power=0.8, alpha=0.025)
    assert sandwich["detectable"] == pytest.approx(sandwich["sd"] * strict, rel=1e-3)


def test_a_diverged_run_is_told_and_counts_nowhere(tmp_path: Path) -> None:
    statuses = {"post-fresh-parallel/seed_1": "diverged"}
    root = make_study(tmp_path / "s", NORMS, range(3), differing([-1, -2, -1.1]), report=POST, statuses=statuses)
    found = report(root)  # nothing is missing: it came to its end
    assert "1 of 3 runs of norm=post diverged." in found["answer"]
    assert found["comparisons"][0]["seeds"] == [0, 2]
    assert found["cells"][0]["status"] == {"done": 2, "diverged": 1}
    assert found["cells"][0]["eval_train_loss"]["n"] == 2
    assert found["rests_on"]["diverged"] == ["post-fresh-parallel/seed_1"]
    assert found["rests_on"]["incomplete_pairs"] == [{"label": "norm=post", "has": [0, 2], "lacks": [1]}]


def test_incomplete_pairs_are_refused_by_name_unless_allowed(tmp_path: Path) -> None:
    statuses = {
        "pre-fresh-parallel/seed_0": "missing",
        "pre-fresh-parallel/seed_1": "failed",
        "post-fresh-parallel/seed_2": "running",
    }
    root = make_study(tmp_path / "s", NORMS, range(5), differing([-1, -1, -1, -1.2, -1]), statuses=statuses)
    with pytest.raises(UsageError) as refused:
        analyse(study.read(root))
    for told in (*statuses, "--allow-missing", "python -m gpt_ablate.train --multirun study=s norm=post,pre seed=0,1"):
        assert told in str(refused.value)
    found = report(root, allow_missing=True)
    assert found["comparisons"][0]["seeds"] == [3, 4]
    rests_on = found["rests_on"]
    assert rests_on["missing"] == ["pre-fresh-parallel/seed_0"]
    assert rests_on["failed"] == [{"name": "pre-fresh-parallel/seed_1", "error": "MemoryError: not enough"}]
    assert rests_on["running"] == ["post-fresh-parallel/seed_2"]
    assert found["answer"][1:] == [
        "1 of 5 runs of norm=pre failed.",
        "1 of 5 runs of norm=pre is missing.",
        "1 of 5 runs of norm=post is not finished.",
    ]


def test_a_seed_that_one_cell_lacks_is_an_incomplete_pair_without_a_plan_too(tmp_path: Path) -> None:
    statuses = {"pre-fresh-parallel/seed_2": "missing"}
    root = make_study(tmp_path / "s", NORMS, range(3), statuses=statuses, plan=False)
    with pytest.raises(UsageError, match="pre-fresh-parallel/seed_2"):
        analyse(study.read(root))


def test_a_study_without_a_finished_run_has_no_answer(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", {"norm": ["pre"]}, [0], statuses={"pre-fresh-parallel/seed_0": "failed"})
    with pytest.raises(UsageError, match="finished run"):
        analyse(study.read(root), allow_missing=True)


def test_unknown_metrics_are_refused(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, report={"metrics": {"eval/train_los": 0.1}})
    with pytest.raises(UsageError) as refused:
        analyse(study.read(root))
    assert "Did you mean 'eval/train_loss'" in str(refused.value)


def test_within_compares_only_cells_that_agree(tmp_path: Path) -> None:
    cells = {"norm": ["post", "pre"], "model.dropout": [0.0, 0.1]}
    root = make_study(tmp_path / "s", cells, range(3), report=POST | {"within": ["model.dropout"]})
    pairs = [(each["label"], each["reference"]) for each in report(root)["comparisons"]]
    assert pairs == [
        ("norm=pre model.dropout=0", "norm=post model.dropout=0"),
        ("norm=pre model.dropout=0.1", "norm=post model.dropout=0.1"),
    ]


FACTORIAL = {"norm": ["post", "pre"], "layers": ["fresh", "clone"], "attention": ["parallel", "looped"]}


def crossed(levels: Levels, seed: int) -> float:
    """norm -3, layers +0.2, both together another +1, attention nothing; a seed moves all of them a little."""
    pre, clone = levels["norm"] == "pre", levels["layers"] == "clone"
    wobble = np.random.default_rng([seed, pre, clone, levels["attention"] == "looped"]).normal(scale=0.01)
    return 5 - 3 * pre + 0.2 * clone + 1.0 * (pre and clone) + wobble


def test_a_factorial_study_leads_with_main_effects(tmp_path: Path) -> None:
    found = report(make_study(tmp_path / "s", FACTORIAL, range(3), crossed, report=POST))
    kinds = [each["kind"] for each in found["comparisons"]]
    assert [kinds.count(kind) for kind in ("cell", "main effect", "interaction")] == [7, 3, 3]
    effects = {each["label"]: each for each in found["comparisons"] if each["kind"] != "cell"}
    assert effects["norm=pre"]["difference"] == pytest.approx(-2.5, abs=0.02)  # -3 and -2, averaged
    assert effects["layers=clone"]["difference"] == pytest.approx(0.7, abs=0.02)
    assert effects["norm=pre x layers=clone"]["difference"] == pytest.approx(1.0, abs=0.05)
    assert (effects["attention=looped"]["verdict"], effects["norm=pre"]["verdict"]) == ("negligible", "better")
    assert re.match(r"norm=pre reaches a final training loss 2\.[45]\d+ lower than norm=post", found["answer"][0])
    assert "than norm=post, averaged over layers and attention (95 % CI" in found["answer"][0]
    assert re.match(
        r"Interaction of norm=pre and layers=clone: their combined effect on final training loss is (1\.0|0\.9)\d* "
        r"higher than the sum of their separate effects \(95 % CI",
        found["answer"][3],
    )
    assert found["answer"][4:] == ["Other two-factor interactions in final training loss: 2 negligible."]


def test_effects_are_not_taken_of_an_incomplete_factorial(tmp_path: Path) -> None:
    gone = {f"pre-clone-looped/seed_{seed}": "diverged" for seed in range(3)}
    found = report(make_study(tmp_path / "s", FACTORIAL, range(3), crossed, report=POST, statuses=gone))
    assert {each["kind"] for each in found["comparisons"]} == {"cell"}
    assert "3 of 3 runs of norm=pre layers=clone attention=looped diverged." in found["answer"]


RATES = {"norm": ["post", "pre"], "optimizer.lr": [1e-4, 1e-3, 1e-2]}
TUNE = POST | {"tune": ["optimizer.lr"]}


def rated(levels: Levels, seed: int) -> float:
    """post is best at 1e-3 (4.0), pre at 1e-2 (2.0)."""
    losses = {"post": {1e-4: 5.0, 1e-3: 4.0, 1e-2: 8.0}, "pre": {1e-4: 4.5, 1e-3: 3.0, 1e-2: 2.0}}
    return losses[str(levels["norm"])][float(levels["optimizer.lr"])] + 0.1 * seed * (levels["norm"] == "pre")


def test_arms_are_compared_at_their_best_settings(tmp_path: Path) -> None:
    found = report(make_study(tmp_path / "s", RATES, range(3), rated, report=TUNE))
    (tuned,) = [each for each in found["comparisons"] if each["kind"] == "tuned"]
    assert tuned["differences"] == pytest.approx([-2.0, -1.9, -1.8])
    assert found["answer"] == [tuned["sentence"]]
    assert tuned["sentence"].startswith(
        "norm=pre at its best setting reaches a final training loss 1.9 lower than norm=post at its best setting (95 "
        "% CI"
    )
    post, pre = found["tuned_settings"]
    assert (post["arm"], post["trials"], post["best"]) == ("norm=post", 3, {"optimizer.lr": "0.001"})
    assert (pre["best"], pre["mean"]) == ({"optimizer.lr": "0.01"}, pytest.approx(2.1))
    assert post["lr_sensitivity"] == pytest.approx((5.0 + 4.0 + 8.0) / 3 - 4.0)


def test_a_setting_with_a_diverged_run_is_no_best_and_unequal_trials_are_unfair(tmp_path: Path) -> None:
    name = "{}-fresh-parallel-optimizer.lr_{}/seed_{}".format
    statuses = {name("pre", 0.01, 2): "diverged"}
    statuses |= {name("post", 0.01, seed): "missing" for seed in range(3)}
    root = make_study(tmp_path / "s", RATES, range(3), rated, report=TUNE, statuses=statuses)
    found = report(root, allow_missing=True)
    post, pre = found["tuned_settings"]
    assert (post["trials"], pre["trials"], pre["best"]) == (2, 3, {"optimizer.lr": "0.001"})
    start, worst = LN_VOCAB, (2.0 + 2.1 + LN_VOCAB) / 3  # the run that diverged counts as no better than its start
    rates = [4.6, 3.1, min(worst, start)]
    assert pre["lr_sensitivity"] == pytest.approx(sum(rates) / 3 - min(rates))
    assert found["answer"][-1] == (
        "The comparison is unfair: the arms had unequal numbers of trials (2 for norm=post and 3 for norm=pre), and an "
        "arm with more trials tends to find a better setting."
    )
    (tuned,) = [each for each in found["comparisons"] if each["kind"] == "tuned"]
    assert tuned["differences"] == pytest.approx([-1.0, -0.9, -0.8])


def test_budgets_are_what_every_run_reached(tmp_path: Path) -> None:
    # the same steps: equal tokens give the final losses, but post takes twice the time and has to be cut
    def speed(levels: Levels, seed: int) -> float:
        return 512.0 if levels["norm"] == "pre" else 256.0

    shape = Shape(tokens_per_second=speed)
    found = report(make_study(tmp_path / "s", NORMS, [0, 1], differing([-2, -2]), report=POST, shape=shape))
    budgets = {each["unit"]: each for each in found["budgets"]}
    assert {unit: each["budget"] for unit, each in budgets.items()} == {
        "tokens": 20 * 512,
        "FLOPs": 20 * 512 * 2e7,
        "seconds": 20.0,
    }
    for unit in ("tokens", "FLOPs"):
        assert [cell["mean"] for cell in budgets[unit]["cells"]] == pytest.approx([5.55, 3.55])
    lines = study.read(tmp_path / "s").cells()["post"][0].directory.metrics()
    assert lines[10]["wall_time"] == 20.0
    assert budgets["seconds"]["cells"][0]["mean"] == pytest.approx(lines[10]["eval/train_loss"], abs=0.06)
    assert budgets["seconds"]["cells"][1]["mean"] == pytest.approx(3.55)
    assert any("differ in seconds" in note for note in found["rests_on"]["notes"])


def test_a_budget_between_two_evaluations_is_interpolated(tmp_path: Path) -> None:
    def speed(levels: Levels, seed: int) -> float:
        return 512.0 if levels["norm"] == "pre" else 512.0 / 1.6

    shape = Shape(tokens_per_second=speed)
    found = report(make_study(tmp_path / "s", NORMS, [0], differing([-2]), report=POST, shape=shape))
    losses = {
        line["step"]: line["eval/train_loss"]
        for line in study.read(tmp_path / "s").cells()["post"][0].directory.metrics()
        if "eval/train_loss" in line
    }
    (seconds,) = [each for each in found["budgets"] if each["unit"] == "seconds"]
    assert seconds["cells"][0]["mean"] == pytest.approx((losses[10] + losses[15]) / 2)  # 20 s are 12.5 steps of post


def test_cells_hold_the_table(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, range(3), differing([-2, -2, -2]), report=POST)
    post, pre = report(root)["cells"]
    assert (post["baseline"], pre["baseline"], pre["label"], pre["levels"]) == (
        True,
        False,
        "norm=pre",
        {"norm": "pre"},
    )
    firsts = [run.curves["train/epoch_loss"].values[0] for run in study.read(root).cells()["pre"]]
    assert (pre["early_step"], pre["early_loss"]["n"]) == (5, 3)
    assert pre["early_loss"]["mean"] == pytest.approx(np.mean(firsts))
    assert pre["early_loss"]["sd"] == pytest.approx(np.std(firsts, ddof=1))
    assert pre["val_bits_per_byte"]["mean"] == pytest.approx((3.6 + 1) / math.log(2) / 4)
    assert pre["peak_memory_bytes"]["mean"] == 1e9


def test_what_was_not_recorded_is_none(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, [0], shape=Shape(val_bytes_per_token=None))
    for file in root.rglob("result.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"peak_rss_is_of_run": False}))
    for cell in report(root)["cells"]:
        assert cell["val_bits_per_byte"] == cell["peak_memory_bytes"] == {"n": 0, "mean": None, "sd": None}


def test_hardware_that_differs_is_flagged(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, [0])
    assert report(root)["rests_on"]["hardware"] == ["Some CPU, 2 cores, 1 thread, 25 GB"]
    file = root / "pre-fresh-parallel" / "seed_0" / "run.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"hardware": {"processor": "Other CPU", "cores": 8, "threads": 8}}))
    rests_on = report(root)["rests_on"]
    assert rests_on["hardware"] == ["Other CPU, 8 cores, 8 threads", "Some CPU, 2 cores, 1 thread, 25 GB"]
    assert rests_on["hardware_differs"]
    assert "different hardware" in rests_on["notes"][-1]


def test_one_cell_has_nothing_to_compare(tmp_path: Path) -> None:
    found = report(make_study(tmp_path / "s", {"norm": ["pre"]}, range(3), lambda levels, seed: 2.0 + seed))
    assert (found["comparisons"], found["rests_on"]["incomplete_pairs"]) == ([], [])
    assert found["answer"] == [
        "default: the final training loss is 3.000 nats per token (mean of 3 runs). The study has one cell, "
        "so there is nothing to compare."
    ]


def test_many_comparisons_are_told_in_sum(tmp_path: Path) -> None:
    rates = [round(0.001 * n, 3) for n in range(1, 12)]
    root = make_study(
        tmp_path / "s", {"optimizer.lr": rates}, range(3), lambda levels, seed: 5 - 100 * float(levels["optimizer.lr"])
    )
    answer = report(root)["answer"]
    assert answer[0] == (
        "10 comparisons of final training loss with optimizer.lr=0.001: 10 better, 0 worse, 0 negligible, 0 with no "
        "difference shown."
    )
    assert answer[1].startswith("The largest improvement: optimizer.lr=0.011 reaches a final training loss 1.00 lower")


@pytest.mark.parametrize(
    ("mean", "interval", "told"),
    [
        (-5.3012, (-5.4811, -5.1213), ("-5.30", "-5.48", "-5.12")),
        (0.0213, (-0.0493, 0.0919), ("0.02", "-0.05", "0.09")),
        (0.12, (0.0003, 0.2397), ("0.1200", "0.0003", "0.2397")),
        (0.001, (-0.3, 0.302), ("0.0", "-0.3", "0.3")),
        (12345.0, (12145.0, 12545.0), ("12,300", "12,100", "12,500")),
        (0.5, (0.5, 0.5), ("0.500", "0.500", "0.500")),
        (0.0, (0.0, 0.0), ("0", "0", "0")),
    ],
)
def test_digits_follow_the_interval(mean: float, interval: tuple[float, float], told: tuple[str, str, str]) -> None:
    assert sentences.together(mean, interval) == told


def test_numbers_keep_their_significant_digits() -> None:
    numbers: Mapping[float, str] = {0.1: "0.10", 5.3: "5.3", 0.0123: "0.012", 1234.0: "1,200", 3.5e13: "3.5e13"}
    assert {value: sentences.number(value, 2) for value in numbers} == numbers
    assert [sentences.probability(p) for p in (0.0001, 0.0123, 1.0)] == ["p < 0.001", "p = 0.012", "p = 1"]
