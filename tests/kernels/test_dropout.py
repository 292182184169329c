"""Dropout: which elements go, what becomes of the others, and their gradients."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from gpt_ablate.kernels import dropout
from gpt_ablate.kernels.dropout import Dropout


def dropped(p: float, x: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return Dropout(p)(x)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1e-4])
def test_elements_go_independently_with_probability_p(p: float) -> None:
    kept = dropped(p, torch.ones(1000, 1000)) != 0
    assert stats.binomtest(int((~kept).sum()), kept.numel(), p).pvalue > 1e-3
    for apart in range(1, 9):  # four elements come from one draw
        together = (~kept.flatten()[apart:]) & (~kept.flatten()[:-apart])
        assert stats.binomtest(int(together.sum()), together.numel(), p * p).pvalue > 1e-4


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 7), (2, 3, 5)])
def test_what_stays_is_scaled_and_so_is_its_gradient(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).requires_grad_()
    out = dropped(0.25, x)
    (out * 3).sum().backward()
    scale = torch.where(out == 0, 0.0, 1 / 0.75)
    torch.testing.assert_close(out, x * scale)
    torch.testing.assert_close(x.grad, 3 * scale)


def test_the_seed_decides() -> None:
    x = torch.ones(100)
    assert torch.equal(dropped(0.5, x, seed=1), dropped(0.5, x, seed=1))
    assert not torch.equal(dropped(0.5, x, seed=1), dropped(0.5, x, seed=2))


@pytest.mark.parametrize("p", [0.0, 1.0, 0.1 / dropout.LEVELS, 1 - 0.1 / dropout.LEVELS])
def test_what_it_cannot_draw_is_left_to_torch(p: float) -> None:
    x = torch.ones(500, 500)
    torch.manual_seed(0)
    assert torch.equal(nn.Dropout(p)(x), dropped(p, x))


@pytest.mark.parametrize("kind", ["float64", "bfloat16", "evaluation"])
def test_elsewhere_it_is_torchs(kind: str) -> None:
    dtype = torch.float32 if kind == "evaluation" else getattr(torch, kind)
    ours, theirs = (each.train(kind != "evaluation") for each in (Dropout(0.3), nn.Dropout(0.3)))
    x = torch.ones(50, dtype=dtype)
    found = []
    for each in (ours, theirs):
        torch.manual_seed(0)
        found.append(each(x))
    assert torch.equal(*found)
