"""The embedding against torch.nn's, and the memory of its gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt_ablate.kernels.embedding import Embedding, Spare


def gradient_of(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    embedding.weight.grad = None
    (embedding(ids) * torch.arange(3)).sum().backward()
    assert embedding.weight.grad is not None
    return embedding.weight.grad


def test_gradients_are_torchs_in_memory_that_was_used() -> None:
    spare = Spare()
    ours, theirs = Embedding(7, 3, spare), nn.Embedding(7, 3)
    theirs.load_state_dict(ours.state_dict())
    places = set()
    for ids in (torch.tensor([[1, 4, 1], [0, 0, 0]]), torch.tensor([5]), torch.tensor([[6, 5]])):
        assert torch.equal(ours(ids), theirs(ids))
        mine = gradient_of(ours, ids)
        assert torch.equal(mine, gradient_of(theirs, ids))
        places.add(mine.data_ptr())
        spare.give(mine)
        del mine  # autograd copies what has another owner
    assert len(places) == 1


def test_without_a_gradient_it_is_torchs() -> None:
    ours = Embedding(7, 3, Spare())
    with torch.inference_mode():
        assert torch.equal(ours(torch.tensor([2, 2])), ours.weight[[2, 2]])


def test_what_is_out_is_not_given_again() -> None:
    spare, like = Spare(), torch.ones(1)
    first, second = spare.take(4, 2, like=like), spare.take(4, 2, like=like)
    assert first.data_ptr() != second.data_ptr()
    spare.give(first)
    assert spare.take(4, 2, like=like) is first
    assert spare.take(4, 2, like=like) is not first


def test_only_what_fits_is_kept() -> None:
    spare, like = Spare(), torch.ones(1)
    unasked = torch.zeros(3)
    spare.give(unasked)
    assert spare.take(3, like=like) is not unasked
    spare.give(unasked)
    assert spare.take(3, like=like.double()).dtype == torch.float64
