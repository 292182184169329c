"""What the field trains GPT-2 small with, each as its users run it: a loss to call and parameters to update.

Untied head, no dropout, (B, T) random tokens. Every import is inside its function: only one peer is in a process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, VOCABULARY, CONTEXT = 12, 12, 768, 50257, 256


@dataclass
class Peer:
    """A model as a benchmark sees it."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]
    """Of (B, T + 1) tokens, a scalar in nats."""
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    """What its own training script takes on a CPU."""


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """As `torch.optim.AdamW` comes."""
    return torch.optim.AdamW(parameters, lr=4e-4, weight_decay=0.1)


def fused(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The same update in one pass over memory."""
    return torch.optim.AdamW(parameters, lr=4e-4, weight_decay=0.1, fused=True)


def litgpt() -> Peer:
    """litgpt's GPT at GPT-2's shape (rotary positions: it has no learned ones), its loss and AdamW of `pretrain`."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        name="gpt2-small",
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=WIDTH,
        block_size=CONTEXT,
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,  # by default 50688: more parameters than the others have
        parallel_residual=False,
        rotary_percentage=1.0,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
    )
    model = GPT(config)
    return Peer(model, lambda tokens: chunked_cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]), adamw)


def transformers() -> Peer:
    """Hugging Face's GPT2LMHeadModel with an untied head and the optimiser that its Trainer takes by default."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(n_positions=CONTEXT, tie_word_embeddings=False, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    )
    model.config.use_cache = False

    def loss(tokens: Tensor) -> Tensor:  # it shifts the labels itself
        return model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss

    return Peer(model, loss, fused)


def x_transformers() -> Peer:
    """x-transformers' decoder and wrapper; Adam, as its training scripts take it, with weight decay (AdamW)."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    decoder = Decoder(dim=WIDTH, depth=LAYERS, heads=HEADS)
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=CONTEXT, attn_layers=decoder))
    return Peer(model, lambda tokens: model(tokens[:, :-1]), adamw)  # shifts the labels itself


class _TutorialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.0)
        self.register_buffer("mask", torch.triu(torch.ones(CONTEXT, CONTEXT, dtype=torch.bool), diagonal=1))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)
        scores = scores.masked_fill(self.mask[:tokens, :tokens], -math.inf)
        x = self.dropout(torch.softmax(scores, dim=-1)) @ v
        return self.out(x.transpose(1, 2).contiguous().view(batch, tokens, WIDTH))


class _TutorialBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = _TutorialAttention()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.0)
        )
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class _Tutorial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(_TutorialBlock() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def tutorial() -> Peer:
    """GPT-2 in plain PyTorch, as one writes it from a tutorial: three projections, a mask, softmax, AdamW."""
    model = _Tutorial()

    def loss(tokens: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return Peer(model, loss, adamw)


PEERS: dict[str, Callable[[], Peer]] = {
    "litgpt": litgpt,
    "transformers": transformers,
    "x-transformers": x_transformers,
    "tutorial": tutorial,
}
