"""A linear layer that is quick for one token too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST_PARTS = 64


class Linear(nn.Linear):
    """`nn.Linear`; where no gradient is wanted, the CPU's threads share the product with a single row.

    BLAS gives such a product (every token of a sample) to one thread, which cannot read weights as fast as memory gives
    them; a batch of products with parts of the weights goes to all threads.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        parts = 1
        if x.numel() == self.in_features and x.device.type == "cpu" and not torch.is_grad_enabled():
            parts = _parts(self.out_features, torch.get_num_threads())
        if parts == 1 or torch.compiler.is_compiling():
            return super().forward(x)
        weights = self.weight.view(parts, -1, self.in_features).transpose(1, 2)
        out = torch.bmm(x.reshape(1, 1, -1).expand(parts, -1, -1), weights).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def _parts(rows: int, threads: int) -> int:
    """The least number of equal parts of `rows` that employs all threads; 1 if that is too many."""
    return next((n for n in range(threads, MOST_PARTS + 1) if rows % n == 0), 1)
