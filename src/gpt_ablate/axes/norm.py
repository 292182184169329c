"""Where LayerNorm stands in a block (Xiong et al. 2020, figure 1)."""

from __future__ import annotations

from torch import Tensor, nn

from gpt_ablate.axes.attention import LayerCache
from gpt_ablate.config import Positive
from gpt_ablate.dropout import Dropout
from gpt_ablate.registry import Registry

norms: Registry[type[Block]] = Registry("norm")


class Block(nn.Module):
    """A transformer layer: attention and MLP, each with a norm, a dropout and a residual."""

    def __init__(
        self, attention: nn.Module, mlp: nn.Module, d_model: int, dropout: float, *, eps: Positive = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model, eps=eps)
        self.attention = attention
        self.norm2 = nn.LayerNorm(d_model, eps=eps)
        self.mlp = mlp
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        raise NotImplementedError

    def closing_norm(self) -> nn.Module:
        """What must stand between the last block and the head."""
        return nn.LayerNorm(self.norm1.normalized_shape, eps=self.norm1.eps)


@norms.register("pre")
class PreNorm(Block):
    """Norm on the way into each sublayer; the residual path is never normalised."""

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


@norms.register("post")
class PostNorm(Block):
    """Norm of each sum of residual and sublayer, as in Vaswani et al. 2017."""

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.norm1(x + self.dropout(self.attention(x, cache)))
        return self.norm2(x + self.dropout(self.mlp(x)))

    def closing_norm(self) -> nn.Module:
        """Nothing: the last block already ends with a norm."""
        return nn.Identity()
