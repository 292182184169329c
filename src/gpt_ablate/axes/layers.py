"""How the stack of layers is constructed."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from gpt_ablate.registry import Registry

MakeLayer = Callable[[int], nn.Module]
"""Construct and initialise layer i."""

stacks: Registry[Callable[[MakeLayer, int], nn.ModuleList | list[nn.Module]]] = Registry("layers")
"""Of (make_layer, n_layer). A layer may occur several times, and layers may share modules, parameters and buffers.

Each parameter is filled once, where `make_layer` first meets it; what a builder adds to the layers keeps the values of
its constructor.
"""


@stacks.register("fresh")
def fresh(make_layer: MakeLayer, n_layer: int) -> nn.ModuleList:
    """Every layer constructed on its own: all initial values differ."""
    return nn.ModuleList(make_layer(i) for i in range(n_layer))


@stacks.register("clone")
def clone(make_layer: MakeLayer, n_layer: int) -> nn.ModuleList:
    """Deep copies of layer 0, as `torch.nn.TransformerEncoder` makes: equal values, separate storage."""
    first = make_layer(0)
    return nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(1, n_layer))])
