"""The linear layer against torch.nn's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpt_ablate import linear
from gpt_ablate.linear import Linear


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.mark.parametrize("rows", [12, 35, 127])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,), (2, 3)])
def test_it_computes_what_torchs_does(
    rows: int, bias: bool, shape: tuple[int, ...], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ours, theirs = Linear(7, rows, bias=bias), nn.Linear(7, rows, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(*shape, 7)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))
    x.requires_grad_()
    gradients = [torch.autograd.grad(layer(x).square().sum(), [x, layer.weight]) for layer in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_all_threads_get_equal_parts() -> None:
    assert [linear._parts(rows, 2) for rows in (12, 35, 127, 50257)] == [2, 5, 1, 29]
    assert linear._parts(12, 1) == 1
