"""How the stack of layers is constructed."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from gpt_ablate.axes import LayerContext
from gpt_ablate.config.registry import Registry

stacks: Registry[Callable[..., nn.ModuleList | list[nn.Module]]] = Registry("layers", ["context"])
"""A layer may occur several times, and layers may share modules, parameters and buffers.

Each parameter is filled once, where `make_layer` first meets it; what a builder adds to the layers keeps the values of
its constructor.
"""


@stacks.register("fresh")
def fresh(context: LayerContext) -> nn.ModuleList:
    """Every layer constructed on its own: all initial values differ."""
    return nn.ModuleList(context.make_layer(i) for i in range(context.n_layer))


@stacks.register("clone")
def clone(context: LayerContext) -> nn.ModuleList:
    """Deep copies of layer 0, as `torch.nn.TransformerEncoder` makes: equal values, separate storage."""
    first = context.make_layer(0)
    return nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(1, context.n_layer))])
