"""Orders of windows: each number once, or drawn; computed where a list would not fit in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from gpt_ablate.data import orders
from gpt_ablate.utils import random_streams

HUGE = 10**11


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permutations of any length are computed."""
    monkeypatch.setattr(orders, "_LISTED", 0)


def test_a_short_permutation_is_the_one_of_existing_runs() -> None:
    order = orders.permutation(1000, 3, "data/1")
    assert torch.equal(torch.as_tensor(order), torch.randperm(1000, generator=random_streams.generator(3, "data/1")))


def test_from_the_limit_on_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "_LISTED", 1000)
    assert isinstance(orders.permutation(1000, 0, "data/1"), torch.Tensor)
    order = orders.permutation(1001, 0, "data/1")
    assert isinstance(order, orders.Permutation)
    assert sorted(order[:].tolist()) == list(range(1001))


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("root", [0, "7/arm"])
def test_each_number_once(root: int | str) -> None:
    for n in [*range(1, 70), 1023, 1024, 1025, 65_537, 99_991]:
        order = orders.permutation(n, root, "data/1")
        assert len(order) == n
        assert torch.equal(torch.sort(order[:]).values, torch.arange(n)), n


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("draw", [orders.permutation, orders.with_replacement])
def test_slices_are_parts_of_the_whole(draw: type[orders.Computed]) -> None:
    order = draw(1013, 5, "data/2")
    whole = order[:]
    assert (whole.dtype, whole.shape) == (torch.int64, (1013,))
    for part in (slice(0, 8), slice(1, None, 4), slice(990, 2000), slice(7, 7), slice(-5, None), slice(2000, 3000)):
        assert torch.equal(order[part], torch.from_numpy(whole.numpy()[part].copy())), part


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("draw", [orders.permutation, orders.with_replacement])
def test_epochs_and_seeds_have_orders_of_their_own(draw: type[orders.Computed]) -> None:
    n = 5000
    found = [draw(n, root, f"data/{epoch}")[:].numpy() for root in (0, 1, "0/arm") for epoch in (1, 2, 3)]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one == other).sum() < 10  # 1 expected
            assert abs(stats.spearmanr(one, other).statistic) < 0.06  # 4 standard deviations


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("draw", [orders.permutation, orders.with_replacement])
@pytest.mark.parametrize("n", [40_000, 65_536, HUGE])
def test_no_structure(draw: type[orders.Computed], n: int) -> None:
    """Numbers at near positions, and the differences between them, are spread as if drawn."""
    numbers = draw(n, 11, "data/1")[: min(n, 60_000)].numpy()
    found = [np.histogram(numbers[:20_000], 64, (0, n))[0]]
    for step in (1, 2, 7, 8, 256):
        assert abs(np.corrcoef(numbers[:-step], numbers[step:])[0, 1]) < 4.5 / np.sqrt(len(numbers))
        differences = (numbers[step:] - numbers[:-step]) % n
        found.append(np.histogram(differences, 64, (0, n))[0])
    found += [np.bincount(numbers[:20_000] % k, minlength=k) for k in (2, 3, 8, 61)]
    pairs = numbers[: len(numbers) // 2 * 2].reshape(-1, 2) * 16 // n
    found.append(np.bincount(pairs[:, 0] * 16 + pairs[:, 1], minlength=256))
    assert min(stats.chisquare(counts).pvalue for counts in found) > 1e-4


@pytest.mark.usefixtures("computed")
def test_all_permutations_of_few_numbers_are_as_likely() -> None:
    counts = np.zeros(24, int)
    names: dict[tuple[int, ...], int] = {}
    for epoch in range(1920):
        counts[names.setdefault(tuple(orders.permutation(4, 0, f"data/{epoch}")[:].tolist()), len(names))] += 1
    assert stats.chisquare(counts).pvalue > 1e-4


def test_draws_repeat_as_often_as_chance_has_it() -> None:
    numbers = orders.with_replacement(100_000, 0, "data/1")[:].numpy()
    assert abs(len(np.unique(numbers)) / 100_000 - (1 - np.exp(-1))) < 0.005


@pytest.mark.parametrize("draw", [orders.permutation, orders.with_replacement])
def test_a_long_order_takes_no_memory(draw: type[orders.Computed]) -> None:
    order = draw(HUGE, 0, "data/1")
    assert len(order) == HUGE
    last = order[HUGE - 1000 :]
    assert len(last.unique()) == 1000
    assert 0 <= int(last.min()) < int(last.max()) < HUGE
