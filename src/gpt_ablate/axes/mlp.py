"""What stands between the two projections of a layer's feed-forward half."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from gpt_ablate.axes import LayerContext
from gpt_ablate.config.registry import Registry
from gpt_ablate.config.schema import Count
from gpt_ablate.kernels.gelu_product import gelu_product, has_kernel
from gpt_ablate.kernels.linear import Linear

mlps: Registry[Callable[..., nn.Module]] = Registry("mlp", ["context"])


@mlps.register("gelu")
class Gelu(nn.Module):
    """Position-wise feed-forward with GELU (Hendrycks & Gimpel 2016), in GPT-2 in its tanh form (Radford et al. 2019).

    On the CPU training with the tanh form takes the weights of `out` without calling it: its hooks are not called.
    """

    def __init__(self, context: LayerContext, *, approximate: Literal["tanh", "none"] = "tanh") -> None:
        super().__init__()
        self.approximate = approximate
        self.fc = Linear(context.d_model, context.mlp_hidden, bias=context.bias)
        self.out = Linear(context.mlp_hidden, context.d_model, bias=context.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden = self.fc(x)
        if self.approximate == "tanh" and has_kernel(hidden):
            return gelu_product(hidden, self.out.weight, self.out.bias)
        return self.out(F.gelu(hidden, approximate=self.approximate))


@mlps.register("swiglu")
class SwiGLU(nn.Module):
    """SiLU(x W) * (x V), then the output projection (Shazeer 2020, equation 6); as in Llama, with `model.bias=false`.

    The hidden layer has 2/3 of `model.mlp_hidden` units unless `hidden` says otherwise, so that its three matrices have
    as many weights as the two of `gelu` (Shazeer 2020, section 3).
    """

    def __init__(self, context: LayerContext, *, hidden: Count | None = None) -> None:
        super().__init__()
        width = hidden or max(1, round(2 * context.mlp_hidden / 3))
        self.gate = Linear(context.d_model, width, bias=context.bias)
        self.fc = Linear(context.d_model, width, bias=context.bias)
        self.out = Linear(width, context.d_model, bias=context.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.out(F.silu(self.gate(x)) * self.fc(x))
        return out
