"""Initial values of parameters, each from a stream of its own name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpt_ablate.config.registry import Registry
from gpt_ablate.config.schema import Positive
from gpt_ablate.utils import random_streams

Init = Callable[..., None]
"""Fill (parameter, the module that holds it, its logical name, n_layer, generator) in place."""

inits: Registry[Init] = Registry("init", ["parameter", "module", "name", "n_layer", "generator"])


@inits.register("torch")
def torch_default(parameter: Tensor, module: nn.Module, name: str, n_layer: int, generator: torch.Generator) -> None:
    """PyTorch's defaults: `nn.Linear` U(-1/sqrt(fan_in), 1/sqrt(fan_in)), `nn.Embedding` N(0, 1)."""
    if isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.in_features)
        parameter.uniform_(-bound, bound, generator=generator)
    elif isinstance(module, nn.Embedding):
        parameter.normal_(generator=generator)


@inits.register("gpt2")
def gpt2(
    parameter: Tensor,
    module: nn.Module,
    name: str,
    n_layer: int,
    generator: torch.Generator,
    *,
    std: Positive = 0.02,
) -> None:
    """N(0, std), std / sqrt(2 L) where a sublayer joins the residual path, no bias (Radford et al. 2019, 2.3)."""
    if not isinstance(module, nn.Linear | nn.Embedding):
        return
    if name.endswith(".bias"):
        parameter.zero_()
    else:
        joins_residual = name.endswith((".attention.out.weight", ".mlp.out.weight"))
        parameter.normal_(std=std / math.sqrt(2 * n_layer) if joins_residual else std, generator=generator)


Met = dict[Tensor, tuple[str, int]]
"""Of each parameter that was met: its first logical name, and torch's count of changes to its values then."""


@torch.no_grad()
def initialise(root: nn.Module, prefix: str, init: Init, n_layer: int, seed: int | str, met: Met) -> None:
    """Fill every parameter below `root`, whose own logical name is `prefix`.

    One that several modules hold is filled once, by its first name and for the first module that the scheme knows;
    `met` is what earlier calls for this model have met. Parameters of modules that a scheme does not know keep what
    their constructor gave.
    """
    for module_name, module in root.named_modules(prefix=prefix):
        for own_name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:  # a model whose FLOPs alone are wanted
                continue
            name, changes = met.setdefault(parameter, (f"{module_name}.{own_name}", parameter._version))
            if parameter._version == changes:
                init(parameter, module, name, n_layer, random_streams.generator(seed, f"init/{name}"))
