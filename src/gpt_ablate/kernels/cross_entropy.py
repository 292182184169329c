"""Cross-entropy of a large vocabulary, without all of its logits in memory at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpt_ablate.kernels.embedding import Spare
from gpt_ablate.kernels.linear import gradient_of_input, multiply_into

LOSS_TOKENS = 256
"""Tokens whose logits are in memory at once, on the CPU.

Elsewhere 8 times as many: products are quicker there against a part's pass over the gradient of the head's weights.
"""


def summed_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor, spare: Spare) -> Tensor:
    """Summed cross-entropy in nats of features (N, D), a head's weights (V, D) and targets (N,).

    Targets below 0 do not count.
    """
    at_once = LOSS_TOKENS * (1 if features.device.type == "cpu" else 8)
    total: Tensor = _LossInParts.apply(  # type: ignore[no-untyped-call]
        features, weight, targets, at_once, spare, torch.is_grad_enabled()
    )
    return total


class _LossInParts(torch.autograd.Function):
    """Summed cross-entropy of features (N, D), a head's weights (V, D) and targets (N,), so many of them at a time.

    Gradients are computed ahead, while a part's logits are there (as in the Liger kernels, Hsu et al. 2024).
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        at_once: int,
        spare: Spare,
        with_gradient: bool,
    ) -> Tensor:
        total, ignored = features.new_zeros(()), (targets < 0)[:, None]
        counted = features.masked_fill(ignored, 0.0)
        gradients = (torch.empty_like(features), spare.take(*weight.shape, like=weight)) if with_gradient else ()
        logits = features.new_empty(min(at_once, len(targets)), len(weight))
        for start in range(0, len(targets), at_once):
            rows = slice(start, start + at_once)
            own = targets[rows, None].clamp(min=0)
            log_p = logits[: len(own)]
            multiply_into(log_p, features[rows], weight)
            torch.log_softmax(log_p, dim=-1, out=log_p)
            total -= log_p.gather(1, own).masked_fill_(ignored[rows], 0.0).sum()
            if gradients:
                of_logits = log_p.exp_()
                of_logits.scatter_add_(1, own, of_logits.new_full((), -1.0).expand_as(own))
                gradients[0][rows] = gradient_of_input(of_logits, weight)
                gradients[1].addmm_(of_logits.t(), counted[rows], beta=min(start, 1))  # the first part's is stored
        if gradients:
            gradients[0].masked_fill_(ignored, 0.0)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_features, of_weight = ctx.saved_tensors
        return of_features.mul_(gradient), of_weight.mul_(gradient), None, None, None, None
