"""The optimiser against torch.optim's, and when it lets go of gradients."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_ablate.training import optimizers
from gpt_ablate.training.optimizers import AdamW

BATCHES = torch.randn(4, 10, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    """Three layers, the last of which has the first one's weights."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6))
    layers[4].weight = layers[0].weight
    return layers


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return F.mse_loss(model(batch), batch.flip(-1))


def adamw(model: nn.Module, grad_clip: float | None = None) -> AdamW:
    return AdamW(dict.fromkeys(model.parameters(), 0.3), 0.02, grad_clip, betas=[0.8, 0.95])


@pytest.mark.parametrize("grad_clip", [None, 0.1])
@pytest.mark.parametrize("waiting", [1, 200, 10**6])
def test_updates_are_those_of_torch(waiting: int, grad_clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "WAITING_BYTES", waiting)
    ours, theirs = network(), network()
    ours_optimizer = adamw(ours, grad_clip)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.0, betas=(0.8, 0.95), weight_decay=0.3, fused=True)
    tolerance = {"rtol": 0, "atol": 1e-7 if grad_clip else 0}  # the norm that clips is summed in another order
    for step, batch in enumerate(BATCHES, start=1):
        lr = 0.02 / step
        loss = loss_of(ours, batch)
        ours_optimizer.begin(lr, loss)
        loss.backward()
        norm = ours_optimizer.finish()
        reference.param_groups[0]["lr"] = lr
        reference.zero_grad()
        loss_of(theirs, batch).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), grad_clip or math.inf)
        reference.step()
        torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, **tolerance)
            torch.testing.assert_close(ours_optimizer.state[mine], dict(reference.state[other]), **tolerance)
            assert mine.grad is None


def test_a_batch_in_parts_makes_one_update() -> None:
    whole, in_parts = network(), network()
    for model, n in ((whole, 1), (in_parts, 5)):
        moved = adamw(model)
        for i, part in enumerate(BATCHES[0].chunk(n), start=1):
            loss = loss_of(model, part) / n
            if i == n:
                moved.begin(0.02, loss)
            loss.backward()
        moved.finish()
        assert all(state["step"] == 1 for state in moved.state.values())
    for one, other in zip(whole.parameters(), in_parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("grad_clip", "at_once"), [(None, 1), (1.0, 4)])
def test_gradients_wait_for_one_another_only_to_be_clipped(
    grad_clip: float | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "WAITING_BYTES", 1)
    model = network()
    moved = adamw(model, grad_clip)
    there = []
    for parameter in model.parameters():  # after the optimiser's own hook
        parameter.register_post_accumulate_grad_hook(
            lambda _: there.append(sum(p.grad is not None for p in model.parameters()))
        )
    loss = loss_of(model, BATCHES[0])
    moved.begin(0.02, loss)
    loss.backward()
    assert max(there) == at_once - (grad_clip is None)
    moved.finish()


def test_a_model_is_freed_with_its_optimiser() -> None:
    model = network()
    moved = adamw(model)
    loss = loss_of(model, BATCHES[0])
    moved.begin(0.02, loss)
    loss.backward()
    moved.finish()
    left = [weakref.ref(model), weakref.ref(moved)]
    del model, moved, loss
    gc.collect()
    assert [reference() for reference in left] == [None, None]


@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_a_loss_that_is_not_finite_moves_nothing(grad_clip: float | None) -> None:
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    moved = adamw(model, grad_clip)
    loss = loss_of(model, BATCHES[0]) * math.inf
    moved.begin(0.02, loss)
    loss.backward()
    assert not moved.finish().isfinite()
    for parameter, then in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, then)
        assert moved.state[parameter]["step"] == 0
        assert not moved.state[parameter]["exp_avg"].any()


def test_a_gradient_that_is_not_finite_moves_nothing_from_there_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "WAITING_BYTES", 1)
    model = network()
    model[2].register_full_backward_pre_hook(lambda module, gradients: (gradients[0] * math.nan,))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    moved = adamw(model)
    loss = loss_of(model, BATCHES[0])
    moved.begin(0.02, loss)
    loss.backward()
    assert not moved.finish().isfinite()
    same = {name: torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()}
    assert same == {"0.weight": True, "0.bias": True, "2.weight": True, "4.bias": False}
