"""How attention is computed. All variants share parameters and mathematics (Vaswani et al. 2017, 3.2.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_ablate.axes import LayerContext
from gpt_ablate.axes.position import Position
from gpt_ablate.config.registry import Registry
from gpt_ablate.kernels.dropout import Dropout
from gpt_ablate.kernels.linear import Linear

attentions: Registry[type[CausalSelfAttention]] = Registry("attention", ["context"])


class LayerCache:
    """Keys and values of the tokens that one layer has seen, each (B, H, T, D/H).

    A layer may attend several times in a forward pass; each use has keys and values of its own.
    """

    def __init__(self, batch: int, n_head: int, context: int, head_dim: int, like: Tensor) -> None:
        self._shape, self._like = (batch, n_head, context, head_dim), like
        self._held: list[tuple[Tensor, Tensor]] = []
        self._lengths: list[int] = []
        self._use = 0

    @property
    def length(self) -> int:
        """Tokens seen by what attends next."""
        return self._lengths[self._use] if self._use < len(self._lengths) else 0

    def extend(self, heads: int | slice, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values of `heads`, each (B, [H,] t, D/H); return all up to now.

        `length` grows only when all heads are done (see `advance`), so they may come one by one.
        """
        if self._use == len(self._held):
            self._held.append((self._like.new_empty(self._shape), self._like.new_empty(self._shape)))
            self._lengths.append(0)
        start, end = self.length, self.length + keys.shape[-2]
        all_keys, all_values = self._held[self._use]
        all_keys[:, heads, ..., start:end, :] = keys
        all_values[:, heads, ..., start:end, :] = values
        return all_keys[:, heads, ..., :end, :], all_values[:, heads, ..., :end, :]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as seen; what the layer extends after this belongs to its next use."""
        self._lengths[self._use] += tokens
        self._use += 1

    def rewind(self) -> None:
        """Begin a forward pass: the next use is the first."""
        self._use = 0


class CausalSelfAttention(nn.Module):
    """The parameters all variants share: one projection to q, k and v (in that order, head by head), one out."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.n_head, self.context_length = context.n_head, context.context_length
        self.head_dim = context.d_model // context.n_head
        self.qkv = Linear(context.d_model, 3 * context.d_model, bias=context.qkv_bias)
        self.out = Linear(context.d_model, context.d_model, bias=context.bias)
        self.dropout = Dropout(context.dropout)

    def forward(self, x: Tensor, position: Position, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); with a cache, x holds only the tokens after those cached."""
        raise NotImplementedError

    def new_cache(self, batch: int) -> LayerCache:
        """An empty key-value cache for `batch` sequences of up to T tokens."""
        return LayerCache(batch, self.n_head, self.context_length, self.head_dim, self.out.weight)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal softmax(q k^T / sqrt(D/H)) v; the last query belongs to the last key."""
        queries, keys = q.shape[-2], k.shape[-2]
        future = q.new_full((queries, keys), -math.inf).triu(keys - queries + 1)
        q, k = q.flatten(0, -3), k.flatten(0, -3).transpose(1, 2)
        scores = torch.baddbmm(future, q, k, alpha=1 / math.sqrt(self.head_dim))  # future + q k^T / sqrt, in one pass
        weights = scores.softmax(dim=-1).view(*v.shape[:-2], queries, keys)
        return self.dropout(weights) @ v


@attentions.register("looped")
class LoopedAttention(CausalSelfAttention):
    """One head after the other: project, attend, concatenate."""

    def forward(self, x: Tensor, position: Position, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        weights = self.qkv.weight.split(self.head_dim)
        biases = [None] * len(weights) if self.qkv.bias is None else self.qkv.bias.split(self.head_dim)
        heads = []
        for head in range(self.n_head):
            rows = (head, head + self.n_head, head + 2 * self.n_head)
            q, k, v = (F.linear(x, weights[row], biases[row]) for row in rows)
            q, k = position.rotate(q, k, cache.length if cache else 0)
            if cache is not None:
                k, v = cache.extend(head, k, v)
            heads.append(self.attend(q, k, v))
        if cache is not None:
            cache.advance(x.shape[1])
        return self.out(torch.cat(heads, dim=-1))


@attentions.register("parallel")
class ParallelAttention(CausalSelfAttention):
    """All heads in one batched product."""

    def forward(self, x: Tensor, position: Position, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, tokens, d_model = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.n_head, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = position.rotate(q, k, cache.length if cache else 0)
        if cache is not None:
            k, v = cache.extend(slice(None), k, v)
            cache.advance(tokens)
        heads = self.attend(q, k, v)
        return self.out(heads.transpose(1, 2).reshape(batch, tokens, d_model))


@attentions.register("sdpa")
class SdpaAttention(ParallelAttention):
    """PyTorch's fused kernels, which keep no (T, T) weights where they can (Dao et al. 2022, FlashAttention)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As in the other variants. Dropout draws in another order than theirs."""
        queries, keys = q.shape[-2], k.shape[-2]
        mask = None
        if 1 < queries < keys:  # some, but not all, of a cached context: is_causal would take the last key for a later
            mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        return F.scaled_dot_product_attention(
            *(q, k, v),
            attn_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=queries == keys,
        )
