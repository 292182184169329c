"""Targets that do not count, against `torch.nn.functional.cross_entropy` with its `ignore_index`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_ablate.config.schema import Config
from gpt_ablate.data.corpus import IGNORED
from gpt_ablate.models.gpt import GPT
from gpt_ablate.models.objectives import answers, cross_entropy, loss_per_token

VOCAB = 37


@pytest.fixture
def model(configure: Callable[..., Config]) -> GPT:
    return GPT(configure("model.d_model=24", "model.n_head=3", "model.context_length=300", "model.dropout=0.0"), VOCAB)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) = (2, 300), more than one part of the loss; two targets of three do not count."""
    inputs, targets = torch.randint(VOCAB, (2, 2, 300), generator=torch.Generator().manual_seed(0))
    return inputs, targets.masked_fill(torch.arange(300) % 3 > 0, IGNORED)


@pytest.mark.parametrize("own", [{}, {"z_loss": 1e-2}, {"label_smoothing": 0.2}])
def test_they_add_nothing_to_loss_and_gradients(
    own: dict[str, float], model: GPT, batch: tuple[Tensor, Tensor]
) -> None:
    inputs, targets = batch
    loss = sum(cross_entropy(model, inputs, targets, **own).values())
    ours = torch.autograd.grad(loss, list(model.parameters()))
    logits = model(inputs).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), label_smoothing=own.get("label_smoothing", 0.0))
    if own.get("z_loss"):
        expected = expected + 1e-2 * logits[targets.flatten() >= 0].logsumexp(dim=-1).square().mean()
    torch.testing.assert_close(loss, expected)
    for one, other in zip(ours, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_batch_in_which_none_counts_has_a_loss_of_zero(model: GPT, batch: tuple[Tensor, Tensor]) -> None:
    loss = loss_per_token(model, batch[0], torch.full_like(batch[1], IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_answers_are_counted_where_targets_count(model: GPT, batch: tuple[Tensor, Tensor]) -> None:
    inputs, targets = batch
    with torch.inference_mode():
        logits = model(inputs)
        likeliest = logits.argmax(dim=-1)
        half = torch.where(torch.arange(300) < 150, likeliest, (likeliest + 1) % VOCAB)
        targets = torch.where(targets == IGNORED, targets, half)
        loss, right = answers(model, inputs, targets)
    assert int(right) == int((targets >= 0)[:, :150].sum())
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)
