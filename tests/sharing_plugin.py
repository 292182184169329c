"""A plugin from outside the package: layers that share layers, modules, parameters and buffers."""

from __future__ import annotations

import torch
from torch import nn

from gpt_ablate.axes.layers import stacks
from gpt_ablate.axes.norm import PreNorm, norms


@stacks.register("repeated")
def repeated(context):
    """One layer n times (Dehghani et al. 2019, Lan et al. 2020)."""
    return [context.make_layer(0)] * context.n_layer


@stacks.register("alternating")
def alternating(context):
    pair = context.make_layer(0), context.make_layer(1)
    return nn.ModuleList(pair[i % 2] for i in range(context.n_layer))


class Again(nn.ModuleList):
    """A list of one layer that is passed `times` times."""

    times = 1

    def __iter__(self):
        for _ in range(self.times):
            yield from super().__iter__()


@stacks.register("again")
def again(context):
    layers = Again([context.make_layer(0)])
    layers.times = context.n_layer
    return layers


def sharing(path):
    """Layers of their own but for what `path` names, which is layer 0's in all."""
    owner, _, name = path.rpartition(".")

    def build(context):
        layers = nn.ModuleList(context.make_layer(i) for i in range(context.n_layer))
        for layer in layers[1:]:
            setattr(layer.get_submodule(owner), name, getattr(layers[0].get_submodule(owner), name))
        return layers

    return build


for path in ("mlp", "attention", "norm1", "mlp.fc", "mlp.fc.weight", "attention.out.bias"):
    stacks.register(f"one_{path.replace('.', '_')}")(sharing(path))


class Recurrent(nn.Module):
    """A shared layer passed twice, with an adapter of this use's own."""

    def __init__(self, layer, d_model):
        super().__init__()
        self.adapter = nn.Linear(d_model, d_model)
        self.layer = layer

    def forward(self, x, position, cache=None):
        return self.layer(self.layer(x, position, cache) + self.adapter(x), position, cache)

    def new_cache(self, batch):
        return self.layer.new_cache(batch)

    def closing_norm(self):
        return self.layer.closing_norm()


@stacks.register("recurrent")
def recurrent(context):
    layer = context.make_layer(0)
    return [Recurrent(layer, context.d_model) for _ in range(context.n_layer)]


@norms.register("closing")
class Closing(PreNorm):
    """The norm before the head is the first layer's second."""

    def closing_norm(self):
        return self.norm2


@norms.register("twice")
class Twice(PreNorm):
    """One norm; attention and MLP used twice each."""

    def __init__(self, context):
        super().__init__(context)
        self.norm2 = self.norm1

    def forward(self, x, position, cache=None):
        return super().forward(super().forward(x, position, cache), position, cache)


@norms.register("matrix")
class Matrix(PreNorm):
    """One parameter in two modules, of which the first is none that a scheme for initial values knows."""

    def __init__(self, context):
        super().__init__(context)
        self.attention.shared = nn.ParameterList([self.mlp.fc.weight])

    def forward(self, x, position, cache=None):
        weight = self.attention.shared[0]
        return super().forward(x + x @ weight.t() @ weight / len(weight), position, cache)


EVERYWHERE = []


@norms.register("everywhere")
class Everywhere(PreNorm):
    """One MLP in all layers, whatever builds these."""

    def __init__(self, context):
        super().__init__(context)
        EVERYWHERE.append(self.mlp)
        self.mlp = EVERYWHERE[0]


@norms.register("remembering")
class Remembering(PreNorm):
    """State that is no parameter: buffers that are shared, cut from one table or changed, and plain attributes."""

    def __init__(self, context):
        super().__init__(context)
        self.attention.register_buffer("passes", torch.zeros(()))
        self.mlp.register_buffer("passes", self.attention.passes)
        first, second = torch.linspace(0, 0.1, 2 * context.d_model).chunk(2)
        self.register_buffer("first", first)
        self.register_buffer("second", second)
        self.calls, self.mask, self.mean = 0, torch.ones(len(first)), None

    def forward(self, x, position, cache=None):
        self.calls += 1
        if self.training:
            self.mlp.passes += 1
        x = super().forward(x * self.mask + self.first + self.second * self.attention.passes, position, cache)
        self.mean = x.mean()  # has a gradient function
        return x


@norms.register("aliased")
class Aliased(PreNorm):
    """Tied the wrong way: two parameters in one memory."""

    def __init__(self, context):
        super().__init__(context)
        self.mlp.out.weight = nn.Parameter(self.mlp.fc.weight.t())
