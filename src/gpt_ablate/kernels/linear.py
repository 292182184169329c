"""A linear layer that takes the quickest product there is on the CPU."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_PARTS = 64
ZEN_3 = 25
"""AMD's family of processors from which on MKL's kernels for AVX2 are the quicker ones."""
COLUMNS_AT_ONCE = 1024
LONGEST_TWICE = 1280
"""Inputs of a row up to which MKL multiplies two equal ones sooner than parts of the weights by one."""


class Linear(nn.Linear):
    """`nn.Linear`, in float32 on the CPU by other kernels where they are quicker (benchmarks/README.md).

    On some of AMD's processors oneDNN multiplies at a higher rate than MKL, which torch calls. And where no gradient
    is wanted, all threads share the product with a single row, a token of a sample, which BLAS gives to one: as one
    with two equal rows, or in a batch of parts of the weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not plain_float32_on_cpu(x) or x.shape[-1:] != (self.in_features,):  # torch says what is wrong
            return super().forward(x)
        if x.numel() == self.in_features and not torch.is_grad_enabled():
            return self._of_row(x)
        if x.dim() > 1 and onednn_is_quicker().forward:
            return _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return super().forward(x)

    def _of_row(self, x: Tensor) -> Tensor:
        if self.in_features <= LONGEST_TWICE:
            out = torch.mm(self.weight, x.reshape(1, -1).repeat(2, 1).t())[:, 0].contiguous()
        elif (parts := _parts(self.out_features, torch.get_num_threads())) > 1:
            weights = self.weight.view(parts, -1, self.in_features).mT
            out = torch.bmm(x.reshape(1, 1, -1).expand(parts, 1, -1), weights)
        else:
            return super().forward(x)
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out.add_(self.bias)


class _Product(torch.autograd.Function):
    """x W^T + b by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return gradients(gradient, x, weight, ctx.needs_input_grad)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b for rows x (..., in), without a gradient of its own."""
    return (by_onednn if onednn_is_quicker().forward else F.linear)(x, weight, bias)


def multiply_into(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """x W^T (rows, out), for x (rows, in) and very many outputs, which are quicker to multiply by in parts."""
    columns = COLUMNS_AT_ONCE if out.device.type == "cpu" else len(weight)
    is_quicker = plain_float32_on_cpu(out) and onednn_is_quicker().forward
    for place, rows in zip(out.split(columns, dim=1), weight.split(columns), strict=True):
        if is_quicker:
            place.copy_(by_onednn(x, rows))
        else:
            torch.mm(x, rows.t(), out=place)


def gradient_of_input(gradient: Tensor, weight: Tensor) -> Tensor:
    """That of x (..., in), from that of x W^T (..., out)."""
    derivative_wanted = torch.is_grad_enabled()  # asked for by create_graph=True; oneDNN's product has none
    if plain_float32_on_cpu(gradient) and onednn_is_quicker().backward and not derivative_wanted:
        return by_onednn(gradient, weight.t())
    return gradient @ weight


def gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, W and b, where they are wanted, from that of x W^T + b (..., out)."""
    rows = gradient.flatten(0, -2)
    return (
        gradient_of_input(gradient, weight) if wanted[0] else None,
        rows.t() @ x.flatten(0, -2) if wanted[1] else None,
        rows.sum(dim=0) if wanted[2] else None,
    )


def plain_float32_on_cpu(x: Tensor) -> bool:
    """Whether kernels for float32 on the CPU may be chosen by hand: no autocast, no compiler."""
    is_float32 = x.device.type == "cpu" and x.dtype == torch.float32
    return is_float32 and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


class Quicker(NamedTuple):
    """Products that oneDNN is quicker to make here than MKL; those that give a weight's gradient it never is."""

    forward: bool
    backward: bool
    """Of a gradient with the weights."""


@functools.cache
def onednn_is_quicker() -> Quicker:
    """By what was measured (benchmarks/README.md): AMD's Zen 1 and 2 forward, with AVX-512 both, any other neither."""
    info = Path("/proc/cpuinfo")
    told = info.read_text(encoding="utf-8") if info.exists() else ""
    family = re.search(r"^cpu family\s*: (\d+)$", told, re.MULTILINE)
    if family is None or "AuthenticAMD" not in told or not has_onednn():
        return Quicker(forward=False, backward=False)
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return Quicker(forward=has_avx512 or int(family[1]) < ZEN_3, backward=has_avx512)


def has_onednn() -> bool:
    """Whether torch was built with it."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b in float32 on the CPU, where torch was built with oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@functools.cache
def _parts(rows: int, threads: int) -> int:
    """The least number of equal parts of `rows` that employs all threads; 1 if that is too many."""
    return next((n for n in range(threads, MOST_PARTS + 1) if rows % n == 0), 1)
