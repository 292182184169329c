"""Where the norms of a layer stand (Xiong et al. 2020, figure 1); which normaliser it is, `normalizer` says."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from gpt_ablate.axes import LayerContext
from gpt_ablate.axes.attention import LayerCache
from gpt_ablate.axes.position import Position
from gpt_ablate.axes.residual import Sublayer
from gpt_ablate.config.registry import Registry
from gpt_ablate.config.schema import Positive
from gpt_ablate.kernels.dropout import Dropout

norms: Registry[type[Block]] = Registry("norm", ["context"])


class Block(nn.Module):
    """A transformer layer: attention and MLP, with what `norm` puts before them, after them and after their sum.

    A placement overrides `enter`, `leave` or `close`; sublayer 0 is attention, 1 the MLP.
    """

    def __init__(self, context: LayerContext, *, eps: Positive | None = None) -> None:
        """`eps` replaces that of the normaliser."""
        super().__init__()
        own = {} if eps is None else {"eps": eps}
        attention, mlp = context.build("attention"), context.build("mlp")
        self.residual = context.build("residual")
        self.norm1 = context.build("normalizer", **own)
        self.attention = attention
        self.norm2 = context.build("normalizer", **own) if self.residual.n_norms == 2 else None
        self.mlp = mlp
        self.dropout = Dropout(context.dropout)

    def forward(self, x: Tensor, position: Position, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        attention = Sublayer(
            lambda x: self.enter(0, x),
            lambda x: self.dropout(self.leave(0, self.attention(x, position, cache))),
            lambda x: self.close(0, x),
        )
        mlp = Sublayer(
            lambda x: self.enter(1, x),
            lambda x: self.dropout(self.leave(1, self.mlp(x))),
            lambda x: self.close(1, x),
        )
        out: Tensor = self.residual.join(x, (attention, mlp))
        return out

    def new_cache(self, batch: int) -> LayerCache:
        """An empty key-value cache for `batch` sequences of up to T tokens."""
        cache: LayerCache = self.attention.new_cache(batch)
        return cache

    def norm(self, sublayer: int) -> nn.Module:
        """The norm of a sublayer, which is that of sublayer 0 where both share one."""
        return self.norm2 if sublayer == 1 and self.norm2 is not None else self.norm1

    def enter(self, sublayer: int, x: Tensor) -> Tensor:
        """From the residual stream to the sublayer, (B, T, D) -> (B, T, D)."""
        return x

    def leave(self, sublayer: int, x: Tensor) -> Tensor:
        """From the sublayer to the dropout before the sum, (B, T, D) -> (B, T, D)."""
        return x

    def close(self, sublayer: int, x: Tensor) -> Tensor:
        """After the sum with the residual stream, (B, T, D) -> (B, T, D)."""
        return x

    def closing_norm(self) -> nn.Module:
        """What must stand between the last layer and the head: as this layer's norms before training."""
        return copy.deepcopy(self.norm1)


@norms.register("pre")
class PreNorm(Block):
    """Norm on the way into each sublayer; the residual stream is never normalised."""

    def enter(self, sublayer: int, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.norm(sublayer)(x)
        return out


@norms.register("post")
class PostNorm(Block):
    """Norm of each sum of residual stream and sublayer (Vaswani et al. 2017, section 3.1)."""

    def close(self, sublayer: int, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.norm(sublayer)(x)
        return out

    def closing_norm(self) -> nn.Module:
        """Nothing: the last layer already ends with a norm."""
        return nn.Identity()
