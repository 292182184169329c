"""Models that have learned at most the token frequencies: the answer says so before any verdict on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import LN_VOCAB, UNIGRAM_ENTROPY, Levels, Shape, make_study

from gpt_ablate.config.metrics import METRICS
from gpt_ablate.reporting.analysis import analyse
from gpt_ablate.reporting.cell_summaries import unigram_check
from gpt_ablate.studies import study
from gpt_ablate.utils.errors import UsageError

NORMS = {"norm": ["post", "pre"]}
POST = {"baseline": {"norm": "post"}}
ENTROPY = "the final training loss is not below the unigram entropy of the training split (6.008 nats per token)"
AT_MOST = "such a model has learned at most the token frequencies."
NO_VERDICT = "A comparison between such models says nothing about trained models."


def report(root: Path) -> dict[str, Any]:
    """The report of a study, which must be JSON."""
    found = analyse(study.read(root))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def losses(post: list[float], pre: list[float]) -> Callable[[Levels, int], float]:
    """The loss of each seed."""
    return lambda levels, seed: (post if levels["norm"] == "post" else pre)[seed]


LEARNED, NOTHING = [1.0, 1.1, 1.2], [LN_VOCAB + 0.01 * seed for seed in range(3)]


@pytest.mark.parametrize(
    ("post", "pre", "not_below", "first"),
    [
        (NOTHING, NOTHING, [3, 3], f"In all 6 runs, {ENTROPY}: {AT_MOST} {NO_VERDICT}"),
        (NOTHING, LEARNED, [3, 0], f"In all 3 runs of norm=post, {ENTROPY}: {AT_MOST}"),
        (LEARNED, [1.0, 6.5, 1.0], [0, 1], f"In 1 of 3 runs of norm=pre, {ENTROPY}: {AT_MOST}"),
        (
            NOTHING,
            [6.5, 1.0, UNIGRAM_ENTROPY],
            [3, 2],
            f"In all 3 runs of norm=post and 2 of 3 runs of norm=pre, {ENTROPY}: {AT_MOST} {NO_VERDICT}",
        ),
        (LEARNED, [UNIGRAM_ENTROPY - 1e-9] * 3, [0, 0], None),
    ],
)
def test_the_first_sentence_names_the_models_that_have_learned_nothing(
    tmp_path: Path, post: list[float], pre: list[float], not_below: list[int], first: str | None
) -> None:
    found = report(make_study(tmp_path / "s", NORMS, range(3), losses(post, pre), report=POST))
    verdict = found["comparisons"][0]["sentence"]
    assert found["answer"] == ([first, verdict] if first else [verdict])
    arms = [
        {"label": f"norm={norm}", "runs": 3, "not_below": number, "unigram_entropy": UNIGRAM_ENTROPY}
        for norm, number in zip(("post", "pre"), not_below, strict=True)
    ]
    assert found["unigram_check"] == [{"metric": "eval/train_loss", "arms": arms, "sentence": first}]


@pytest.mark.parametrize(
    ("seeds", "where"), [(range(3), "all 3 runs"), ([0], "the only run")], ids=["three runs", "one run"]
)
def test_a_study_of_one_cell(tmp_path: Path, seeds: list[int], where: str) -> None:
    found = report(make_study(tmp_path / "s", {"norm": ["pre"]}, seeds, LN_VOCAB))
    assert found["answer"][0] == f"In {where}, {ENTROPY}: {AT_MOST}"
    assert found["unigram_check"][0]["arms"][0]["label"] == "default"


def test_an_aa_control_and_a_study_that_uses_it(tmp_path: Path) -> None:
    control = study.read(make_study(tmp_path / "aa_control-micro", {"arm": ["a", "b"]}, range(3), LN_VOCAB))
    alone = analyse(control)
    told = f"In all 6 runs, {ENTROPY}: {AT_MOST} {NO_VERDICT}"
    assert alone["answer"][0] == told
    assert alone["answer"][1].startswith("Noise floor")
    runs = study.read(make_study(tmp_path / "s", NORMS, range(3), losses(LEARNED, LEARNED)))
    found = analyse(runs, noise=control)
    assert found["unigram_check"][0]["sentence"] is None
    assert found["noise_floor"]["unigram_check"]["sentence"] == told


def test_only_losses_are_checked_and_each_before_its_own_verdicts(tmp_path: Path) -> None:
    asked = POST | {"metrics": {"tokens_per_second": 0.05, "eval/train_loss": 0.05, "peak_memory_bytes": None}}
    found = report(make_study(tmp_path / "s", NORMS, range(3), losses(NOTHING, NOTHING), report=asked))
    assert [check["metric"] for check in found["unigram_check"]] == ["eval/train_loss"]
    speed, loss, memory = (each["sentence"] for each in found["comparisons"])
    assert found["answer"] == [speed, found["unigram_check"][0]["sentence"], loss, memory]


@pytest.mark.parametrize(
    ("metric", "entropy"), [("eval/val_loss", "6.008 nats per token"), ("val_bits_per_byte", "2.167 bits per byte")]
)
def test_validation_losses_are_compared_with_the_training_split(tmp_path: Path, metric: str, entropy: str) -> None:
    root = make_study(
        tmp_path / "s", NORMS, range(3), losses(LEARNED, [5.5, 5.0, 5.5]), report=POST | {"metrics": {metric: 0.05}}
    )  # the validation loss is 1 above
    assert report(root)["answer"][0] == (
        "In 2 of 3 runs of norm=pre, the final validation loss is not below the unigram entropy of the training split "
        f"({entropy}; that of the validation split is not recorded): on new text, such a model may be no better than "
        "token frequencies."
    )


def test_runs_without_bytes_per_token_are_left_out(tmp_path: Path) -> None:
    shape = Shape(val_bytes_per_token=None)
    runs = study.read(make_study(tmp_path / "s", NORMS, range(3), LN_VOCAB, shape=shape))
    assert unigram_check(runs, METRICS["val_bits_per_byte"]) == {
        "metric": "val_bits_per_byte",
        "arms": [],
        "sentence": None,
    }


def test_the_arms_of_a_tuned_study_are_judged_at_their_best_settings(tmp_path: Path) -> None:
    cells = {"norm": ["post", "pre"], "optimizer.lr": [1e-3, 1e-2]}

    def loss(levels: Levels, seed: int) -> float:
        return 6.5 if levels["norm"] == "post" or levels["optimizer.lr"] == 1e-3 else 2.0 + 0.1 * seed

    root = make_study(tmp_path / "s", cells, range(3), loss, report=POST | {"tune": ["optimizer.lr"]})
    found = report(root)
    assert found["answer"][0] == f"In all 3 runs of norm=post, {ENTROPY}: {AT_MOST}"
    assert [(arm["label"], arm["not_below"]) for arm in found["unigram_check"][0]["arms"]] == [
        ("norm=post", 3),
        ("norm=pre", 0),
    ]


def test_diverged_runs_have_no_loss_and_many_cells_are_not_all_named(tmp_path: Path) -> None:
    rates = [0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007]
    statuses = {"pre-fresh-parallel-optimizer.lr_0.001/seed_0": "diverged"}
    root = make_study(
        tmp_path / "s",
        {"optimizer.lr": rates},
        [0, 1],
        lambda levels, seed: 1.0 if levels["optimizer.lr"] == 0.007 else 7.0,
        statuses=statuses,
    )
    found = report(root)
    assert found["unigram_check"][0]["arms"][0]["runs"] == 1
    assert found["answer"][0].startswith(
        "In the only run of optimizer.lr=0.001, both runs of optimizer.lr=0.002, both runs of optimizer.lr=0.003, "
        "both runs of optimizer.lr=0.004 and runs of 2 more cells, the final"
    )


def test_a_record_without_the_entropy_is_refused_by_name(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, [0])
    file = root / "pre-fresh-parallel" / "seed_0" / "run.json"
    record = json.loads(file.read_text())
    del record["data"]["unigram_entropy"]
    file.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"pre-fresh-parallel.*data\.unigram_entropy"):
        study.read(root)
