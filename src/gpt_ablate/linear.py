"""A linear layer that takes the quickest product there is on the CPU."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MOST_PARTS = 64


class Linear(nn.Linear):
    """`nn.Linear`, in float32 on the CPU by other kernels where they are quicker (benchmarks/README.md).

    On AMD's processors oneDNN multiplies by transposed weights at a higher rate than MKL, which torch calls. And where
    no gradient is wanted, all threads share the product with a single row, a token of a sample: BLAS gives it to one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not _plain_float32_on_cpu(x) or torch.compiler.is_compiling():
            return super().forward(x)
        if x.numel() == self.in_features and not torch.is_grad_enabled():
            parts = _parts(self.out_features, torch.get_num_threads())
            return super().forward(x) if parts == 1 else self._shared(x, parts)
        if x.dim() > 1 and onednn_is_quicker():
            return _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return super().forward(x)

    def _shared(self, x: Tensor, parts: int) -> Tensor:
        weights = self.weight.view(parts, -1, self.in_features).mT
        out = torch.bmm(x.reshape(1, 1, -1).expand(parts, 1, -1), weights).view(*x.shape[:-1], -1)
        return out if self.bias is None else out.add_(self.bias)


class _Product(torch.autograd.Function):
    """x W^T + b by oneDNN; the products of the backward pass, where it is the slower one, as torch makes them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            gradient @ weight if wanted[0] else None,
            rows.t() @ x.flatten(0, -2) if wanted[1] else None,
            rows.sum(dim=0) if wanted[2] else None,
        )


@functools.cache
def onednn_is_quicker() -> bool:
    """Whether this machine's processor is AMD's and torch has the kernel."""
    info = Path("/proc/cpuinfo")
    is_amd = info.exists() and "AuthenticAMD" in info.read_text(encoding="utf-8")
    return is_amd and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _plain_float32_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@functools.cache
def _parts(rows: int, threads: int) -> int:
    """The least number of equal parts of `rows` that employs all threads; 1 if that is too many."""
    return next((n for n in range(threads, MOST_PARTS + 1) if rows % n == 0), 1)
