"""A GPT assembled from the variants a config names; knows none of them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from gpt_ablate.axes import LayerContext
from gpt_ablate.axes.attention import LayerCache
from gpt_ablate.axes.norm import Block
from gpt_ablate.axes.position import Position
from gpt_ablate.config.schema import Config
from gpt_ablate.kernels.dropout import Dropout
from gpt_ablate.kernels.embedding import Embedding, Spare
from gpt_ablate.kernels.linear import Linear
from gpt_ablate.models import sharing
from gpt_ablate.models.initialization import Met, initialise, inits
from gpt_ablate.utils import random_streams


class GPT(nn.Module):
    """Embeddings, layers, closing norm, head; initial values a function of `config.root` alone."""

    def __init__(self, config: Config, vocab_size: int = 50257) -> None:
        """`vocab_size` is V, the number of tokens that the tokenizer has; by default that of GPT-2's encoding."""
        super().__init__()
        shape, root = config.model, config.root
        init = inits.bind(config.init.node())
        met: Met = {}

        def fill(module: nn.Module, name: str) -> None:
            initialise(module, name, init, shape.n_layer, root, met)

        def make_layer(i: int) -> nn.Module:
            with random_streams.seeded(root, f"init/layers.{i}"):  # for variants whose constructors draw
                layer: nn.Module = replace(context, index=i).build("norm")
            fill(layer, f"layers.{i}")
            return layer

        context = _context(config, make_layer)
        self.context_length = shape.context_length
        self.n_head = shape.n_head
        self.spare = Spare()
        self.token_embedding = Embedding(vocab_size, shape.d_model, self.spare)
        self.position_embedding = context.build("position")
        self.dropout = Dropout(shape.dropout)
        with random_streams.seeded(root, "init/layers"):
            stack: Any = context.build("layers")
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
        position: Position = self.position_embedding
        x = self.dropout(position.embed(self.token_embedding(tokens), start))
        for i, layer in enumerate(self.layers):
            x = layer(x, position, cache[i] if cache else None)
            if cache:
                cache[i].rewind()
        return self.final_norm(x)

    def new_cache(self, batch: int) -> list[LayerCache]:
        """An empty key-value cache for `batch` sequences of up to the context length."""
        return [cast(Block, layer).new_cache(batch) for layer in self.layers]

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


def _context(config: Config, make_layer: Callable[[int], nn.Module]) -> LayerContext:
    shape = config.model
    return LayerContext(
        d_model=shape.d_model,
        n_head=shape.n_head,
        mlp_hidden=shape.hidden,
        context_length=shape.context_length,
        n_layer=shape.n_layer,
        dropout=shape.dropout,
        qkv_bias=shape.qkv_bias,
        bias=shape.bias,
        index=None,
        variants={axis: variant.node() for axis, variant in config.axes.items()},
        make_layer=make_layer,
    )


def flops_per_token(model: GPT) -> float:
    """Floating-point operations of forward and backward for one token of a full context, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = sharing.on_meta(model).eval()
    tokens = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        counted(tokens).sum().backward()
    return counter.get_total_flops() / model.context_length
