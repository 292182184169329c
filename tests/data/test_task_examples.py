"""Which examples a task has: both splits, the law of gaps, the strings of brackets."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from task_corpora import CPU, make, rows, small

from gpt_ablate.data import tasks
from gpt_ablate.data.corpus import IGNORED
from gpt_ablate.data.tasks import task as shared

SPACES: list[tuple[str, int, int, dict[str, Any]]] = [
    ("copy", 12, 3**5, {"vocab_size": 5, "symbols": 5}),
    ("selective_copy", 8, 10 * 3**3, {"vocab_size": 5, "symbols": 3}),
    ("dyck", 6, 5 * 3**3, {"kinds": 3, "depth": 3}),
    ("dyck", 7, 4 * 3**3, {"kinds": 3, "depth": 2}),
    ("recall", 8, 7 * 8 * 3, {"vocab_size": 16, "pairs": 1}),
    ("induction", 5, 3 * 4**3, {"vocab_size": 5}),
    ("modular", 4, 13**2, {"p": 13}),
    ("modular", 4, 13 * 12, {"p": 13, "operation": "divide", "train_fraction": 0.2}),
]


@pytest.mark.parametrize(("name", "length", "space", "parameters"), SPACES)
def test_no_example_is_in_both_splits_and_none_is_lost(
    name: str, length: int, space: int, parameters: dict[str, Any]
) -> None:
    many = {} if name == "modular" else {"train_examples": 3000}
    corpus = make(name, length, **parameters, **many)
    train, val = ({tuple(row) for row in rows(split)[0]} for split in (corpus.train, corpus.val))
    assert not train & val
    assert len(train | val) == space
    if many:
        fresh = make(name, length, **parameters, fresh=True, train_examples=3000).train
        assert {tuple(row) for row in fresh.batch(fresh.order("0", 1)[0:3000], CPU)[0].tolist()} == train


def test_about_one_in_eight_examples_is_held_out() -> None:
    inputs = np.array(list(itertools.product(range(8), repeat=4)))
    chosen = [shared.held_out(tasks.copying.Copy(4, 10, 2), seed, inputs) for seed in (0, 1)]
    assert all(it.mean() == pytest.approx(1 / 8, abs=0.02) for it in chosen)
    assert (chosen[0] & chosen[1]).mean() == pytest.approx(1 / 64, abs=0.01)


def test_a_fixed_set_is_the_beginning_of_what_fresh_examples_are_taken_from() -> None:
    numbers = torch.tensor([1, 1023, 1024, 1400])
    kept, fresh = (small("recall", 64, fresh=fresh).train.batch(numbers, CPU) for fresh in (False, True))
    assert torch.equal(torch.stack(kept), torch.stack(fresh))


@pytest.mark.parametrize("filler", [False, True])
def test_filler_takes_the_place_of_zeros(filler: bool) -> None:
    inputs, targets = map(np.array, rows(small("recall", 64, vocab_size=10, pairs=2, filler=filler).train))
    between = inputs[:, 4:][targets[:, 4:] == IGNORED]
    assert set(between) == (set(range(10)) if filler else {0})


def queries(power: float) -> Any:
    """Places, in steps of two, of the queries for the first and the second pair, (n, 2)."""
    inputs = torch.tensor(rows(make("recall", 64, power=power, train_examples=8000).train)[0]).numpy()
    return np.stack([(inputs[:, 8:] == inputs[:, [place]]).argmax(axis=1) // 2 for place in (0, 2)], axis=1)


def law(power: float) -> Any:
    p = np.arange(1, 29) ** (power - 1.0)
    return p / p.sum()


def probability(places: Any, expected: Any) -> float:
    """p value of these places."""
    return stats.chisquare(np.bincount(places, minlength=28), expected * len(places)).pvalue


@pytest.mark.parametrize(("power", "other"), [(0.01, 0.2), (1.0, 0.8)])
def test_gaps_follow_the_power_law(power: float, other: float) -> None:
    found, p = queries(power), law(power)
    assert probability(found[:, 0], p) > 1e-3
    assert probability(found[:, 0], law(other)) < 1e-6
    after_another = p * ((p / (1 - p)).sum() - p / (1 - p))  # the first pair's place is taken
    assert probability(found[:, 1], after_another) > 1e-3
    assert (found[:, 0] != found[:, 1]).all()


@pytest.mark.parametrize(("depth", "paths"), [(1, 1), (2, 16), (3, 34), (5, 42)])
def test_brackets_are_drawn_from_all_strings_of_the_depth(depth: int, paths: int) -> None:
    draws = tasks.dyck.Draws(3)
    inputs, targets = tasks.dyck.Dyck(11, 5, 2, depth).draw(draws, 5000)
    opens = (inputs[:, 1:] <= 2).astype(int) * 2 - 1
    levels = opens.cumsum(axis=1)
    assert (levels.min(), levels.max(), set(levels[:, -1])) == (0, depth, {0})
    counts = Counter(map(tuple, opens.tolist()))
    assert len(counts) == paths
    assert paths == 1 or stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert (targets[:, -1] == IGNORED).all()
