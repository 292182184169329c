"""A GPT assembled from the variants a config names; knows none of them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import rng, sharing
from .axes.attention import LayerCache, attentions
from .axes.layers import stacks
from .axes.norm import norms
from .config import Config
from .dropout import Dropout
from .embedding import Embedding, Spare
from .init import Met, initialise, inits
from .linear import Linear, gradient_of_input, multiply_into
from .mlp import MLP
from .tokenizer import VOCAB_SIZE


class GPT(nn.Module):
    """Embeddings, layers, closing norm, head; initial values a function of `config.root` alone."""

    def __init__(self, config: Config, vocab_size: int = VOCAB_SIZE) -> None:
        super().__init__()
        shape, axes, root = config.model, config.axes, config.root
        init = inits.bind(config.init.node())
        met: Met = {}

        def fill(module: nn.Module, name: str) -> None:
            initialise(module, name, init, shape.n_layer, root, met)

        def make_layer(i: int) -> nn.Module:
            with rng.seeded(root, f"init/layers.{i}"):  # for variants whose constructors draw
                attention = attentions.build(
                    axes["attention"].node(), shape.d_model, shape.n_head, shape.dropout, shape.qkv_bias
                )
                mlp = MLP(shape.d_model, shape.hidden)
                layer: nn.Module = norms.build(axes["norm"].node(), attention, mlp, shape.d_model, shape.dropout)
            fill(layer, f"layers.{i}")
            return layer

        self.context_length = shape.context_length
        self.n_head = shape.n_head
        self.spare = Spare()
        self.token_embedding = Embedding(vocab_size, shape.d_model, self.spare)
        self.position_embedding = nn.Embedding(shape.context_length, shape.d_model)
        self.dropout = Dropout(shape.dropout)
        with rng.seeded(root, "init/layers"):
            stack: Any = stacks.build(axes["layers"].node(), make_layer, shape.n_layer)
            self.layers = stack if isinstance(stack, nn.ModuleList) else nn.ModuleList(stack)
            self.final_norm = stack[0].closing_norm()
        self.head = Linear(shape.d_model, vocab_size, bias=False)
        for name in ("token_embedding", "position_embedding", "final_norm", "head"):
            fill(self.get_submodule(name), name)
        if shape.tie_weights:
            self.head.weight = self.token_embedding.weight
        sharing.refuse_overlap(self)

    def forward(self, tokens: Tensor, cache: list[LayerCache] | None = None) -> Tensor:
        """Logits (B, T, V) for tokens (B, T); with a cache, of the tokens after those cached."""
        return self.head(self.features(tokens, cache))

    def features(self, tokens: Tensor, cache: list[LayerCache] | None = None) -> Tensor:
        """What the head reads, (B, T, D), for tokens (B, T)."""
        start = cache[0].length if cache else 0
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for i, layer in enumerate(self.layers):
            x = layer(x, cache[i] if cache else None)
            if cache:
                cache[i].rewind()
        return self.final_norm(x)

    def new_cache(self, batch: int) -> list[LayerCache]:
        """An empty key-value cache for `batch` sequences of up to the context length."""
        like = self.token_embedding.weight
        head_dim = like.shape[1] // self.n_head
        return [LayerCache(batch, self.n_head, self.context_length, head_dim, like) for _ in self.layers]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GPT:
        """As torch does for `to` and the like; but a buffer that several modules hold stays one buffer."""
        done: dict[Tensor, Tensor] = {}

        def once(tensor: Tensor) -> Tensor:
            if tensor not in done:
                done[tensor] = fn(tensor)
            return done[tensor]

        super()._apply(once, recurse)  # type: ignore[no-untyped-call]
        return self

    def n_parameters(self) -> int:
        """Scalar parameters, tied ones counted once."""
        return sum(p.numel() for p in self.parameters())


LOSS_TOKENS = 256
"""Tokens whose logits are in memory at once, on the CPU.

Elsewhere 8 times as many: products are quicker there against a part's pass over the gradient of the head's weights.
"""


def loss_per_token(model: GPT, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of (B, T) targets in nats, reduced over all tokens."""
    features, targets = model.features(inputs).flatten(0, 1), targets.flatten()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(features.device.type):  # parts know neither
        return F.cross_entropy(model.head(features).float(), targets, reduction=reduction)
    at_once = LOSS_TOKENS * (1 if features.device.type == "cpu" else 8)
    total = _LossInParts.apply(  # type: ignore[no-untyped-call]
        features, model.head.weight, targets, at_once, model.spare, torch.is_grad_enabled()
    )
    return total / len(targets) if reduction == "mean" else total


class _LossInParts(torch.autograd.Function):
    """Summed cross-entropy of features (N, D), a head's weights (V, D) and targets (N,), so many of them at a time.

    Gradients are computed ahead, while a part's logits are there (as in the Liger kernels, Hsu et al. 2024).
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        at_once: int,
        spare: Spare,
        with_gradient: bool,
    ) -> Tensor:
        total = features.new_zeros(())
        gradients = (torch.empty_like(features), spare.take(*weight.shape, like=weight)) if with_gradient else ()
        logits = features.new_empty(min(at_once, len(targets)), len(weight))
        for start in range(0, len(targets), at_once):
            rows = slice(start, start + at_once)
            own = targets[rows, None]
            log_p = logits[: len(own)]
            multiply_into(log_p, features[rows], weight)
            torch.log_softmax(log_p, dim=-1, out=log_p)
            total -= log_p.gather(1, own).sum()
            if gradients:
                of_logits = log_p.exp_()
                of_logits.scatter_add_(1, own, of_logits.new_full((), -1.0).expand_as(own))
                gradients[0][rows] = gradient_of_input(of_logits, weight)
                gradients[1].addmm_(of_logits.t(), features[rows], beta=min(start, 1))  # the first part's is stored
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_features, of_weight = ctx.saved_tensors
        return of_features.mul_(gradient), of_weight.mul_(gradient), None, None, None, None


def flops_per_token(model: GPT) -> float:
    """Floating-point operations of forward and backward for one token of a full context, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = sharing.on_meta(model).eval()
    tokens = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        counted(tokens).sum().backward()
    return counter.get_total_flops() / model.context_length
