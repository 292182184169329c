"""The linear layer against torch.nn's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpt_ablate.kernels import linear
from gpt_ablate.kernels.linear import Linear

shapes = pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,), (2, 3)])
biases = pytest.mark.parametrize("bias", [True, False])


def twins(rows: int, bias: bool) -> tuple[Linear, nn.Linear]:
    ours, theirs = Linear(7, rows, bias=bias), nn.Linear(7, rows, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("longest", [0, 7])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [5, 12, 35, 127])
@biases
@shapes
def test_a_product_without_gradient_is_torchs(
    rows: int, bias: bool, shape: tuple[int, ...], threads: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(linear, "LONGEST_TWICE", longest)
    ours, theirs = twins(rows, bias)
    x = torch.randn(*shape, 7)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


def test_a_single_row_is_shared_in_any_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    of_row = Linear._of_row
    monkeypatch.setattr(Linear, "_of_row", lambda self, x: seen.append(x.shape) or of_row(self, x))
    ours, _ = twins(12, bias=True)
    with torch.inference_mode():
        for shape in ((7,), (1, 7), (1, 1, 7), (2, 7)):
            ours(torch.ones(shape))
    assert seen == [(7,), (1, 7), (1, 1, 7)]


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
@biases
@shapes
def test_gradients_are_torchs(kind: str, bias: bool, shape: tuple[int, ...]) -> None:
    ours, theirs = (layer.double() if kind == "float64" else layer for layer in twins(5, bias))
    x = torch.randn(*shape, 7, dtype=ours.weight.dtype, requires_grad=True)
    found = []
    for layer in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
            out = layer(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    for mine, torchs in zip(*found, strict=True):
        assert mine.dtype == torchs.dtype
        torch.testing.assert_close(mine, torchs)


@pytest.mark.usefixtures("products")
def test_only_what_is_wanted_gets_a_gradient() -> None:
    ours, theirs = twins(5, bias=True)
    for layer in (ours, theirs):
        layer.weight.requires_grad_(False)
        layer(torch.ones(2, 7)).sum().backward()
        assert layer.weight.grad is None
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (8, 1)])
def test_as_many_numbers_in_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(8, 12, bias=False)(torch.ones(shape))


@pytest.mark.usefixtures("products")
def test_second_derivatives_are_torchs() -> None:
    found = []
    x = torch.randn(3, 7, requires_grad=True)
    for layer in twins(5, bias=True):
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, layer.weight]))
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs)


def test_all_threads_get_equal_parts() -> None:
    assert [linear._parts(rows, 2) for rows in (12, 35, 127, 50257)] == [2, 5, 1, 29]
    assert linear._parts(12, 1) == 1
