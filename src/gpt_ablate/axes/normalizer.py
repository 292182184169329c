"""Which normaliser stands where `norm` puts one."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gpt_ablate.axes import LayerContext
from gpt_ablate.config.registry import Registry
from gpt_ablate.config.schema import Positive

normalizers: Registry[Callable[..., nn.Module]] = Registry("normalizer", ["context"])


@normalizers.register("layernorm")
def layernorm(context: LayerContext, *, eps: Positive = 1e-5) -> nn.LayerNorm:
    """LayerNorm with a weight and, unless `model.bias` is false, a bias (Ba et al. 2016, equation 4).

    (..., D) -> (..., D).
    """
    return nn.LayerNorm(context.d_model, eps=eps, bias=context.bias)


@normalizers.register("rmsnorm")
def rmsnorm(context: LayerContext, *, eps: Positive = 1e-5) -> nn.RMSNorm:
    """RMSNorm with a weight: no mean is subtracted, no bias added (Zhang & Sennrich 2019, equation 4)."""
    return nn.RMSNorm(context.d_model, eps=eps)
