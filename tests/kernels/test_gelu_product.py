"""The feed-forward half of a layer against torch.nn's."""

from __future__ import annotations

import pytest
import torch
from contexts import context_of
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from gpt_ablate.axes.mlp import Gelu


def twins(wide: float = 1.0) -> tuple[Gelu, nn.Sequential]:
    ours = Gelu(context_of(d_model=6, mlp_hidden=20))
    theirs = nn.Sequential(nn.Linear(6, 20), nn.GELU(approximate="tanh"), nn.Linear(20, 6))
    with torch.no_grad():
        ours.fc.weight.mul_(wide)
    theirs.load_state_dict({f"{2 * (name[0] == 'o')}.{name.split('.')[1]}": p for name, p in ours.named_parameters()})
    return ours, theirs


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("wide", [1.0, 30.0])
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...], kind: str, wide: float) -> None:
    ours, theirs = (each.double() if kind == "float64" else each for each in twins(wide))
    x = torch.randn(*shape, 6, dtype=ours.fc.weight.dtype, requires_grad=True)
    found = []
    for each in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
            out = each(x)
            with torch.inference_mode():
                torch.testing.assert_close(each(x), out, rtol=1e-5, atol=1e-4)
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, *each.parameters()])])
    for mine, torchs in zip(*found, strict=True):
        assert mine.dtype == torchs.dtype
        torch.testing.assert_close(mine, torchs, **({"rtol": 1e-4, "atol": 1e-4} if kind == "float32" else {}))


def test_only_what_is_wanted_gets_a_gradient() -> None:
    ours, theirs = twins()
    x = torch.randn(3, 6)
    for last in (ours.out, theirs[2]):
        last.weight.requires_grad_(False)
    ours(x).sum().backward()
    theirs(x).sum().backward()
    assert ours.out.weight.grad is None
    torch.testing.assert_close(ours.out.bias.grad, theirs[2].bias.grad)
    torch.testing.assert_close(ours.fc.weight.grad, theirs[0].weight.grad)


def test_the_backward_pass_keeps_one_side_of_gelu() -> None:
    kept: set[int] = set()
    ours, _ = twins()
    x = torch.randn(50, 6)
    with saved_tensors_hooks(lambda tensor: kept.add(tensor.untyped_storage().data_ptr()) or tensor, lambda it: it):
        ours(x)
    there = {tensor.untyped_storage().data_ptr() for tensor in (x, *ours.parameters())}
    assert len(kept - there) == 1
