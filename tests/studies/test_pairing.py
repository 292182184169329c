"""How much pairing by seed bought: the variance of paired differences over that of unpaired ones."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import Levels, Shape, make_study

from gpt_ablate.reporting.analysis import analyse
from gpt_ablate.reporting.tables import comparisons as table
from gpt_ablate.studies import study

SEEDS = range(6)
NORMS = {"norm": ["post", "pre"]}
POST = {"baseline": {"norm": "post"}}
FACTORIAL = {"norm": ["post", "pre"], "layers": ["fresh", "clone"], "attention": ["parallel", "looped"]}


def drawn(levels: Levels, seed: int) -> float:
    """A loss with a part of the seed that all cells share and a part of its own; cells differ in spread."""
    cell = zlib.crc32(repr(sorted(levels.items())).encode())
    own = np.random.default_rng([seed, cell]).normal()
    return float(3 + 0.1 * np.random.default_rng(seed).normal() + (0.02 + 0.01 * (cell % 4)) * own)


def entries(root: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """The comparisons of a study by label and metric."""
    found = analyse(study.read(root), **options)
    return {f"{each['label']} {each['metric']}": each for each in found["comparisons"]}


def test_the_ratio_of_two_cells_follows_from_their_correlation(tmp_path: Path) -> None:
    def speed(levels: Levels, seed: int) -> float:
        return 1000 * float(np.exp(drawn(levels, seed)))

    asked = POST | {"metrics": {"eval/train_loss": 0.05, "tokens_per_second": 0.05}}
    made = make_study(tmp_path / "s", NORMS, SEEDS, drawn, report=asked, shape=Shape(tokens_per_second=speed))
    post, pre = (np.array([drawn({"norm": norm}, seed) for seed in SEEDS]) for norm in ("post", "pre"))
    r, a, b = np.corrcoef(post, pre)[0, 1], post.std(ddof=1), pre.std(ddof=1)
    expected = 1 - 2 * r * a * b / (a**2 + b**2)
    assert 0.01 < expected < 0.9, "paired, and not by copying"
    found = entries(made)
    assert found["norm=pre eval/train_loss"]["variance_ratio"] == pytest.approx(expected)
    assert found["norm=pre tokens_per_second"]["variance_ratio"] == pytest.approx(expected), "of logarithms"


def test_the_ratio_of_effects_is_that_of_their_contrast(tmp_path: Path) -> None:
    found = entries(make_study(tmp_path / "s", FACTORIAL, SEEDS, drawn, report=POST))
    cells = list(itertools.product(*FACTORIAL.values()))
    values = np.array([[drawn(dict(zip(FACTORIAL, cell, strict=True)), seed) for cell in cells] for seed in SEEDS])
    covariance = np.cov(values, rowvar=False)
    references = [levels[0] for levels in FACTORIAL.values()]
    sign = np.where(np.array(cells) == references, -1, 1)
    contrasts = {
        "norm=pre": sign[:, 0] / 4,
        "layers=clone": sign[:, 1] / 4,
        "norm=pre x layers=clone": sign[:, 0] * sign[:, 1] / 2,
        "layers=clone x attention=looped": sign[:, 1] * sign[:, 2] / 2,
    }
    for label, weights in contrasts.items():
        expected = weights @ covariance @ weights / (weights**2 @ np.diag(covariance))
        assert found[f"{label} eval/train_loss"]["variance_ratio"] == pytest.approx(expected), label


@pytest.mark.parametrize(
    ("post", "pre", "ratio", "shown"),
    [
        ([1.0, 2.0], [1.5, 1.0], None, "–"),
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], None, "–"),
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], 0.0, "0.00"),
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.01], 7.117e-6, "< 0.01"),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], 2.0, "2.00"),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], 1.0, "1.00"),
    ],
    ids=["two pairs", "no variance", "equal", "nearly equal", "opposite", "one cell constant"],
)
def test_the_ratio_at_its_limits(
    tmp_path: Path, post: list[float], pre: list[float], ratio: float | None, shown: str
) -> None:
    root = make_study(
        tmp_path / "s",
        NORMS,
        range(len(post)),
        lambda levels, seed: (post if levels["norm"] == "post" else pre)[seed],
        report=POST,
    )
    found = analyse(study.read(root))
    found_ratio = found["comparisons"][0]["variance_ratio"]
    assert found_ratio is None if ratio is None else found_ratio == pytest.approx(ratio, rel=1e-3)
    made = table(found, ["cell"], "")
    assert made is not None
    assert made.rows[0][made.columns.index("variance ratio")] == (shown, "")


def test_only_the_pairs_of_the_comparison_count(tmp_path: Path) -> None:
    values = {"post": [1.0, 2.0, 4.0, 9.0], "pre": [1.5, 2.0, 3.0, 50.0]}
    root = make_study(
        tmp_path / "s",
        NORMS,
        range(4),
        lambda levels, seed: values[str(levels["norm"])][seed],
        report=POST,
        statuses={"post-fresh-parallel/seed_3": "diverged"},
    )
    post, pre = (np.array(of_cell[:3]) for of_cell in values.values())
    expected = np.var(pre - post, ddof=1) / (np.var(pre, ddof=1) + np.var(post, ddof=1))
    assert entries(root)["norm=pre eval/train_loss"]["variance_ratio"] == pytest.approx(expected)


def test_tuned_arms_count_at_their_chosen_settings(tmp_path: Path) -> None:
    cells = NORMS | {"optimizer.lr": [1e-3, 1e-2]}

    def loss(levels: Levels, seed: int) -> float:
        return drawn({"norm": levels["norm"]}, seed) + (1 + 0.1 * seed) * (levels["optimizer.lr"] == 1e-2)

    found = entries(make_study(tmp_path / "s", cells, SEEDS, loss, report=POST | {"tune": ["optimizer.lr"]}))
    post, pre = (np.array([drawn({"norm": norm}, seed) for seed in SEEDS]) for norm in ("post", "pre"))
    expected = np.var(pre - post, ddof=1) / (np.var(pre, ddof=1) + np.var(post, ddof=1))
    (tuned,) = [each for each in found.values() if each["kind"] == "tuned"]
    assert tuned["variance_ratio"] == pytest.approx(expected)
