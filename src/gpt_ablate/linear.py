"""A linear layer that takes the quickest product there is on the CPU."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_PARTS = 64
ZEN_3 = 25
"""The family of AMD's processors from which on MKL is the quicker one."""
COLUMNS_AT_ONCE = 1024


class Linear(nn.Linear):
    """`nn.Linear`, in float32 on the CPU by other kernels where they are quicker (benchmarks/README.md).

    On AMD's Zen 1 and 2 oneDNN multiplies by transposed weights at a higher rate than MKL, which torch calls. And
    where no gradient is wanted, all threads share the product with a single row, a token of a sample: BLAS gives it to
    one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not plain_float32_on_cpu(x):
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
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return gradients(gradient, x, weight, ctx.needs_input_grad)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b for rows x (..., in), without a gradient of its own."""
    return (_by_onednn if onednn_is_quicker() else F.linear)(x, weight, bias)


def multiply_into(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """x W^T (rows, out), for x (rows, in) and very many outputs, which MKL is quicker to multiply by in parts."""
    columns = COLUMNS_AT_ONCE if out.device.type == "cpu" else len(weight)
    for place, rows in zip(out.split(columns, dim=1), weight.split(columns), strict=True):
        torch.mm(x, rows.t(), out=place)


def gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, W and b, where they are wanted, from that of x W^T + b (..., out)."""
    rows = gradient.flatten(0, -2)
    return (
        gradient @ weight if wanted[0] else None,
        rows.t() @ x.flatten(0, -2) if wanted[1] else None,
        rows.sum(dim=0) if wanted[2] else None,
    )


def plain_float32_on_cpu(x: Tensor) -> bool:
    """Whether kernels for float32 on the CPU may be chosen by hand: no autocast, no compiler."""
    is_float32 = x.device.type == "cpu" and x.dtype == torch.float32
    return is_float32 and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


@functools.cache
def onednn_is_quicker() -> bool:
    """Whether this machine's processor is AMD's Zen 1 or 2 and torch has the kernel."""
    info = Path("/proc/cpuinfo")
    told = info.read_text(encoding="utf-8") if info.exists() else ""
    family = re.search(r"^cpu family\s*: (\d+)$", told, re.MULTILINE)
    is_early = "AuthenticAMD" in told and family is not None and int(family[1]) < ZEN_3
    return is_early and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@functools.cache
def _parts(rows: int, threads: int) -> int:
    """The least number of equal parts of `rows` that employs all threads; 1 if that is too many."""
    return next((n for n in range(threads, MOST_PARTS + 1) if rows % n == 0), 1)
