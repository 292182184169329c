"""How the model knows the order of its tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpt_ablate.axes import LayerContext
from gpt_ablate.config.registry import Registry
from gpt_ablate.config.rules import rule
from gpt_ablate.config.schema import Config, Positive
from gpt_ablate.utils.errors import Problem

positions: Registry[Callable[..., Position]] = Registry("position", ["context"])


class Position(nn.Module):
    """One object for the whole model, with a method for each place where positions can act; each does nothing here.

    `start` is the position of the first token that is passed: 0, or the number of tokens in the key-value cache.
    """

    def embed(self, x: Tensor, start: int) -> Tensor:
        """Token embeddings (B, T, D) -> what goes into the first layer (B, T, D)."""
        return x

    def rotate(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Queries and keys (..., T, D/H) -> the same with their positions; keys are cached after this."""
        return q, k


@positions.register("none")
class NoPosition(Position):
    """No position at all: the causal mask alone orders the tokens (Kazemnejad et al. 2023)."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()


@positions.register("learned")
class LearnedPosition(nn.Embedding, Position):
    """A learned vector for each position, added to the token embeddings (Radford et al. 2019)."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context.context_length, context.d_model)

    def embed(self, x: Tensor, start: int) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return x + self(torch.arange(start, start + x.shape[1], device=x.device))


@positions.register("rope")
class RotaryPosition(Position):
    """Queries and keys are rotated by angles that grow with the position (Su et al. 2021, section 3.2.2).

    Dimension i of a head is paired with dimension i + D/2H, as in GPT-NeoX and Llama.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, context: LayerContext, *, base: Positive = 10000.0) -> None:
        """Raises ValueError if a head has an odd number of dimensions."""
        super().__init__()
        head_dim = context.d_model // context.n_head
        if head_dim % 2:
            raise ValueError(f"rope rotates pairs of dimensions: d_model / n_head = {head_dim} must be even")
        frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.arange(context.context_length, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cos", angles.cos().repeat(1, 2).float(), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2).float(), persistent=False)

    def rotate(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """(..., T, D/H) each -> the same shapes."""
        rows = slice(start, start + q.shape[-2])
        cos, sin = self.cos[rows].to(q.dtype), self.sin[rows].to(q.dtype)
        return q * cos + _turned(q) * sin, k * cos + _turned(k) * sin


@rule("position", "model.d_model", "model.n_head")
def _pairs(config: Config) -> list[Problem]:
    position, model = config.__dict__.get("axes", {}).get("position"), config.model
    if position is None or position.name != "rope" or model.d_model % (2 * model.n_head) == 0:
        return []
    if model.d_model % model.n_head:  # told by the rule for all models
        return []
    told = f"heads with an even number of dimensions, which position=rope rotates in pairs (here {model.d_model}"
    return [Problem("model.n_head", model.n_head, f"{told} / {model.n_head} = {model.d_model // model.n_head})")]


def _turned(x: Tensor) -> Tensor:
    """Each pair (a, b) as (-b, a): a rotation by 90 degrees."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
