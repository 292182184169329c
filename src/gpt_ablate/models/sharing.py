"""Tensors that a model holds under several names: shared layers, tied weights, one buffer of many modules."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)


def first_names(model: nn.Module) -> dict[str, str]:
    """Each name of the state dict -> the first name of the tensor that it stands for."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as safetensors takes it: each tensor once, under its first name, and no two in one memory."""
    first, found = first_names(model), {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if first[name] != name:
            continue
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor  # such as two buffers cut from one table
        seen.add(place)
    return found


def load_weights(model: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Copy tensors into `model`; one that it holds under several names may be given under any of them.

    Raises ValueError if two values are given for one tensor, RuntimeError for a missing, unknown or misshapen one.
    """
    first = first_names(model)
    taken: dict[str, str] = {}
    for name, value in given.items():
        other = taken.setdefault(first.get(name, name), name)
        if other != name and not torch.equal(value, given[other]):
            raise ValueError(f"{other} and {name} are one tensor in this model and two different ones there")
    known = {name: given[taken[own]] for name, own in first.items() if own in taken}
    model.load_state_dict({**given, **known})


def refuse_overlap(model: nn.Module) -> None:
    """Raise ValueError if two parameters lie in the same memory: each would have a part of one gradient."""
    by_storage: dict[tuple[int, torch.dtype], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and parameter.numel():
            by_storage[parameter.untyped_storage().data_ptr(), parameter.dtype].append((name, parameter))
    for held in by_storage.values():
        if len(held) == 1:
            continue
        owner = torch.full((held[0][1].untyped_storage().nbytes() // held[0][1].element_size(),), -1)
        for i, (name, parameter) in enumerate(held):
            own = owner.as_strided(parameter.shape, parameter.stride(), parameter.storage_offset())
            if (other := int(own.max())) >= 0:
                raise ValueError(
                    f"{held[other][0]} and {name} are two parameters in one memory; "
                    "weights are shared by giving one nn.Parameter to both modules"
                )
            own.fill_(i)


def on_meta(model: Module) -> Module:
    """A copy that shares within itself what `model` does, with shapes and no values (torch's meta device)."""
    with _ToMeta():
        return copy.deepcopy(model)


class _ToMeta(TorchFunctionMode):
    """Has a deep copy put every tensor on the meta device, also one that is no parameter or has a gradient function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clone:  # by which a parameter copies its data
            return args[0].to("meta")
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().to("meta").requires_grad_(tensor.requires_grad))
        return func(*args, **(kwargs or {}))
