"""The axes: one file each, holding every variant of that axis; and what a variant's builder is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt_ablate.config.registry import Registry
from gpt_ablate.utils.errors import Problem, UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LayerContext:
    """What the framework gives to the builder of a variant, as its one positional argument.

    This is the interface of plugins: attributes are added, never removed or renamed.
    """

    d_model: int
    """D, the width of the residual stream."""
    n_head: int
    """H, the number of attention heads."""
    mlp_hidden: int
    """Width of the MLP's hidden layer."""
    context_length: int
    """T, the longest sequence in tokens."""
    n_layer: int
    """L, the number of layers."""
    dropout: float
    """Probability of dropout on attention weights and residual branches."""
    qkv_bias: bool
    """Whether the projections to queries, keys and values have a bias."""
    bias: bool
    """Whether the other linear layers and the normalisers have a bias."""
    index: int | None
    """The layer that is being built, from 0; None for what is built once for the whole model."""
    variants: Mapping[str, Mapping[str, Any]]
    """Axis -> the chosen variant: its `name` and its own parameters."""
    make_layer: Callable[[int], nn.Module]
    """Construct and initialise layer i; for the builders of the axis `layers`."""

    def build(self, axis: str, **parameters: Any) -> Any:
        """What the chosen variant of another axis builds for this place; `parameters` replace its own.

        Raises UsageError if the variant takes no such parameter, or if its builder raises ValueError: a builder refuses
        so what a user chose and what cannot be together, such as a shape of the model that the variant cannot have.
        """
        node = {**self.variants[axis], **parameters}
        builder = Registry.by_key[axis].bind(node)
        try:
            return builder(self)
        except UsageError:
            raise
        except ValueError as error:
            told = f"a variant that can be built here ({' '.join(str(error).split())})"
            raise UsageError([Problem(f"{axis}.name", node["name"], told)]) from error
