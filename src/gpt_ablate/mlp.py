"""The feed-forward half of a layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .linear import Linear, gradient_of_input, gradients, plain_float32_on_cpu, product

SLOPE = math.sqrt(8 / math.pi)
CUBIC = 0.044715


class MLP(nn.Module):
    """Position-wise feed-forward with the tanh form of GELU (Radford et al. 2019).

    On the CPU training takes the weights of `out` without calling it: its hooks are not called.
    """

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.fc = Linear(d_model, hidden)
        self.out = Linear(hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden = self.fc(x)
        if plain_float32_on_cpu(hidden) and hidden.dim() > 1 and torch.is_grad_enabled():
            return _GeluProduct.apply(hidden, self.out.weight, self.out.bias)  # type: ignore[no-untyped-call]
        return self.out(F.gelu(hidden, approximate="tanh"))


class _GeluProduct(torch.autograd.Function):
    """gelu(x) W^T + b, which keeps only x for the backward pass (75 MB less for GPT-2 small at 512 tokens).

    gelu(x) = x / 2 (1 + tanh(u / 2)) = x sigmoid(u), u = SLOPE (x + CUBIC x^3): torch has a quick sigmoid on the CPU
    and a slow tanh, so that computing it twice this way takes less time than once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(_gate(x).mul_(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gate = _gate(x)
        gelu = x * gate
        _, of_weight, of_bias = gradients(gradient, gelu, weight, (False, *ctx.needs_input_grad[1:]))
        slope = _parabola(x, 3 * CUBIC).mul_(gelu)  # gelu' = gate + gelu u' (1 - gate)
        slope.addcmul_(slope, gate, value=-1).add_(gate)
        del gate, gelu
        return slope.mul_(gradient_of_input(gradient, weight)), of_weight, of_bias


def _gate(x: Tensor) -> Tensor:
    return _parabola(x, CUBIC).mul_(x).sigmoid_()


def _parabola(x: Tensor, factor: float) -> Tensor:
    """SLOPE (1 + factor x^2)."""
    return torch.addcmul(x.new_full((), SLOPE), x, x, value=factor * SLOPE)
