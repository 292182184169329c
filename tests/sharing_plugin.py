"""A plugin from outside the package: layers that share layers, modules, parameters and buffers."""

from __future__ import annotations

import torch
from torch import nn

from gpt_ablate.axes.layers import stacks
from gpt_ablate.axes.norm import PreNorm, norms


@stacks.register("repeated")
def repeated(make_layer, n_layer):
    """One layer n times (Dehghani et al. 2019, Lan et al. 2020)."""
    return [make_layer(0)] * n_layer


@stacks.register("alternating")
def alternating(make_layer, n_layer):
    pair = make_layer(0), make_layer(1)
    return nn.ModuleList(pair[i % 2] for i in range(n_layer))


class Again(nn.ModuleList):
    """A list of one layer that is passed `times` times."""

    times = 1

    def __iter__(self):
        for _ in range(self.times):
            yield from super().__iter__()


@stacks.register("again")
def again(make_layer, n_layer):
    layers = Again([make_layer(0)])
    layers.times = n_layer
    return layers


def sharing(path):
    """Layers of their own but for what `path` names, which is layer 0's in all."""
    owner, _, name = path.rpartition(".")

    def build(make_layer, n_layer):
        layers = nn.ModuleList(make_layer(i) for i in range(n_layer))
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

    def forward(self, x, cache=None):
        return self.layer(self.layer(x, cache) + self.adapter(x), cache)

    def closing_norm(self):
        return self.layer.closing_norm()


@stacks.register("recurrent")
def recurrent(make_layer, n_layer):
    layer = make_layer(0)
    return [Recurrent(layer, layer.norm1.normalized_shape[0]) for _ in range(n_layer)]


@norms.register("closing")
class Closing(PreNorm):
    """The norm before the head is the first layer's second."""

    def closing_norm(self):
        return self.norm2


@norms.register("twice")
class Twice(PreNorm):
    """One norm; attention and MLP used twice each."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.norm2 = self.norm1

    def forward(self, x, cache=None):
        return super().forward(super().forward(x, cache), cache)


@norms.register("matrix")
class Matrix(PreNorm):
    """One parameter in two modules, of which the first is none that a scheme for initial values knows."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.attention.shared = nn.ParameterList([self.mlp.fc.weight])

    def forward(self, x, cache=None):
        weight = self.attention.shared[0]
        return super().forward(x + x @ weight.t() @ weight / len(weight), cache)


EVERYWHERE = []


@norms.register("everywhere")
class Everywhere(PreNorm):
    """One MLP in all layers, whatever builds these."""

    def __init__(self, *parts):
        super().__init__(*parts)
        EVERYWHERE.append(self.mlp)
        self.mlp = EVERYWHERE[0]


@norms.register("remembering")
class Remembering(PreNorm):
    """State that is no parameter: buffers that are shared, cut from one table or changed, and plain attributes."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.attention.register_buffer("passes", torch.zeros(()))
        self.mlp.register_buffer("passes", self.attention.passes)
        first, second = torch.linspace(0, 0.1, 2 * self.norm1.normalized_shape[0]).chunk(2)
        self.register_buffer("first", first)
        self.register_buffer("second", second)
        self.calls, self.mask, self.mean = 0, torch.ones(len(first)), None

    def forward(self, x, cache=None):
        self.calls += 1
        if self.training:
            self.mlp.passes += 1
        x = super().forward(x * self.mask + self.first + self.second * self.attention.passes, cache)
        self.mean = x.mean()  # has a gradient function
        return x


@norms.register("aliased")
class Aliased(PreNorm):
    """Tied the wrong way: two parameters in one memory."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.mlp.out.weight = nn.Parameter(self.mlp.fc.weight.t())
