"""How the sublayers of a layer join the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from gpt_ablate.axes import LayerContext
from gpt_ablate.config.registry import Registry

residuals: Registry[Callable[..., Residual]] = Registry("residual", ["context"])


class Sublayer(NamedTuple):
    """Attention or MLP with the norms and the dropout around it, in three steps, each (B, T, D) -> (B, T, D)."""

    enter: Callable[[Tensor], Tensor]
    """From the residual stream to the input of the sublayer."""
    run: Callable[[Tensor], Tensor]
    """The sublayer, from its input to what is added to the stream."""
    close: Callable[[Tensor], Tensor]
    """From the sum of stream and sublayer to the stream."""


class Residual(nn.Module):
    """The way of a layer's sublayers into the residual stream."""

    n_norms: ClassVar[int] = 2
    """How many norms `norm` builds on either side of the sublayers: one for each of them, or one for both."""

    def join(self, x: Tensor, sublayers: Sequence[Sublayer]) -> Tensor:
        """The residual stream before the layer (B, T, D) -> after it (B, T, D)."""
        raise NotImplementedError


@residuals.register("sequential")
class Sequential(Residual):
    """One sublayer after the other, each added to the stream (Vaswani et al. 2017, section 3.1)."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()

    def join(self, x: Tensor, sublayers: Sequence[Sublayer]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        for sublayer in sublayers:
            x = sublayer.close(x + sublayer.run(sublayer.enter(x)))
        return x


@residuals.register("parallel")
class Parallel(Residual):
    """Attention and MLP read the same normalised stream, and both are added to it (GPT-J, Wang & Komatsuzaki 2021)."""

    n_norms = 1

    def __init__(self, context: LayerContext) -> None:
        super().__init__()

    def join(self, x: Tensor, sublayers: Sequence[Sublayer]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        entered = sublayers[0].enter(x)
        for sublayer in sublayers:
            x = x + sublayer.run(entered)
        return sublayers[0].close(x)
