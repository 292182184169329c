"""Dropout whose draws are quick on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gpt_ablate.kernels.linear import plain_float32_on_cpu

LEVELS = 2**16
"""Of the random number that decides about one element: 16 bits of the 64 that one draw gives."""


class Dropout(nn.Dropout):
    """`nn.Dropout` (Srivastava et al. 2014), in float32 on the CPU with p to the nearest 1/65,536.

    torch draws one number for each element there, in one thread; here one serves four. Kept for the backward pass is a
    byte an element, not four. A p that would become 0 or 1 is left to torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape, to the same shape."""
        if not self.training:
            return x
        keep = LEVELS - round(self.p * LEVELS)
        if plain_float32_on_cpu(x) and 0 < keep < LEVELS:
            return _Masked.apply(x, keep)  # type: ignore[no-untyped-call]
        return super().forward(x)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: int) -> Tensor:
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = (draws.view(torch.int16)[: x.numel()] < keep - LEVELS // 2).view(torch.uint8).view(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = LEVELS / keep
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None
