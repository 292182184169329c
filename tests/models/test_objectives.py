"""What training minimises, against torch's own losses and the formulas of the papers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_ablate.config.schema import Config
from gpt_ablate.models.gpt import GPT
from gpt_ablate.models.objectives import auxiliary_losses, cross_entropy, objectives

VOCAB = 37


@pytest.fixture
def model(configure: Callable[..., Config]) -> GPT:
    """A small one in double precision, with logits far from alike."""
    built = GPT(configure("model.d_model=24", "model.n_head=3", "model.context_length=12"), VOCAB).double()
    with torch.no_grad():
        built.head.weight *= 5
    return built


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) = (3, 12)."""
    return tuple(torch.randint(VOCAB, (2, 3, 12), generator=torch.Generator().manual_seed(0)))


def gradients(loss: Tensor, model: GPT) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_terms_add_up_to_torchs_loss_and_the_formula(
    z_loss: float, label_smoothing: float, model: GPT, batch: tuple[Tensor, Tensor]
) -> None:
    inputs, targets = batch
    terms = cross_entropy(model, inputs, targets, z_loss=z_loss, label_smoothing=label_smoothing)
    logits, flat = model(inputs).flatten(0, 1), targets.flatten()
    log_z = logits.exp().sum(dim=-1).log()
    expected = F.cross_entropy(logits, flat, label_smoothing=label_smoothing) + z_loss * (log_z**2).mean()
    near = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}  # logits are taken in single precision
    torch.testing.assert_close(sum(terms.values()), expected, **near)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, flat), **near)
    for ours, theirs in zip(gradients(sum(terms.values()), model), gradients(expected, model), strict=True):
        torch.testing.assert_close(ours, theirs, **near)
    assert set(terms) - {"cross_entropy"} == {
        name for name, given in (("z_loss", z_loss), ("label_smoothing", label_smoothing)) if given
    }


def test_no_term_is_negative_or_without_bounds(model: GPT, batch: tuple[Tensor, Tensor]) -> None:
    for wrong in ({"z_loss": -1.0}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}):
        assert [problem.key for problem in objectives.check({"name": "cross_entropy", **wrong})] == [
            f"objective.{key}" for key in wrong
        ]


def test_a_module_may_add_a_term_and_leaves_none_behind(model: GPT) -> None:
    for layer, value in zip(model.layers, (1.0, 2.0), strict=True):
        layer.mlp.auxiliary_losses = {"balance": torch.tensor(value)}
    assert auxiliary_losses(model) == {"balance": torch.tensor(3.0)}
    assert auxiliary_losses(model) == {}
