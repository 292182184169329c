"""An embedding whose gradient, of the vocabulary's size, takes memory that is there already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_ablate.kernels.linear import plain_float32_on_cpu


class Spare:
    """Memory of gradients that were used up, for the next of their shape.

    Those of the head and of the token embedding are never there together. Freed and allocated anew each time, they came
    to have two or three places in the heap (benchmarks/README.md). On the CPU only: elsewhere torch keeps freed memory.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Tensor | None] = {}

    def take(self, *shape: int, like: Tensor) -> Tensor:
        """A tensor of any content, of `like`'s type and on its device."""
        spare = self._kept.get(shape)
        self._kept[shape] = None
        if spare is not None and (spare.dtype, spare.device) == (like.dtype, like.device):
            return spare
        return like.new_empty(shape)

    def give(self, tensor: Tensor) -> None:
        """Keep `tensor`, which nobody may use from here on, if its shape was ever taken."""
        if tuple(tensor.shape) in self._kept and tensor.device.type == "cpu":
            self._kept[tuple(tensor.shape)] = tensor


class Embedding(nn.Embedding):
    """`nn.Embedding` with a `Spare` for its gradient."""

    def __init__(self, number: int, dim: int, spare: Spare) -> None:
        super().__init__(number, dim)
        self.spare = spare

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., dim)."""
        if plain_float32_on_cpu(self.weight) and torch.is_grad_enabled():
            return _Lookup.apply(ids, self.weight, self.spare)  # type: ignore[no-untyped-call]
        return super().forward(ids)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, spare: Spare) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.spare = spare
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        ids, weight = ctx.saved_tensors
        of_weight = ctx.spare.take(*weight.shape, like=gradient).zero_()
        return None, of_weight.index_add_(0, ids.flatten(), gradient.flatten(0, -2)), None
