"""The guard around a user's callback: what it may not change, and what is put back after it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_modules

from gpt_ablate.models.gpt import GPT
from gpt_ablate.training import torch_settings
from gpt_ablate.training.optimizers import Optimizer

_TRACES = (Tensor, type(None), dict, list, set, tuple)
"""Attributes of these types are what a forward pass may leave in a module."""
_HELD = ("_parameters", "_buffers", "_modules")


class CallbackError(RuntimeError):
    """A user's callback raised, changed the training, or returned what cannot be recorded."""


class Guard:
    """Of one model and its optimiser, at one moment: nothing of them may change until the guard is dropped."""

    def __init__(self, model: GPT, optimizer: Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._attributes = {module: dict(vars(module)) for module in model.modules()}
        self._contents = {
            id(value): (value, value.copy())
            for module, attributes in self._attributes.items()
            for name, value in attributes.items()
            if isinstance(value, dict | list | set) and not _is_of_torch(name)
        }
        self._state = self._found()

    @contextmanager
    def around(self, who: str) -> Iterator[None]:
        """Put back random states, settings of the process, modes and traces of forward passes; gradients are freed.

        Raises CallbackError, naming `who`, for what the block raises and for any other change.
        """
        with torch_settings.process_kept():
            try:
                yield
            except (KeyboardInterrupt, CallbackError):
                raise
            except BaseException as error:  # SystemExit too, and Diverged, which the loop would take for its own
                raise CallbackError(f"{who} raised {type(error).__name__}: {error}") from error
        for parameter in self._model.parameters():
            parameter.grad = None
        after = self._found()
        changed = [what for what in self._state | after if self._state.get(what) != after.get(what)]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise CallbackError(f"{who} changed {', '.join(changed[:3])}{more}: a callback may not change the training")
        self._put_back()

    def _found(self) -> dict[str, Any]:
        """What decides the next steps -> how it stands."""
        found: dict[str, Any] = {}
        for name, module in self._model.named_modules():
            prefix = f"{name}." if name else "model."
            found[f"the class of {prefix[:-1]}"] = type(module)
            for key in self._attributes.get(module, ()):
                before, now = self._attributes[module][key], vars(module).get(key)
                if key in _HELD:
                    found[prefix + key] = {part: _Is(value) for part, value in (now or {}).items()}
                elif _is_of_torch(key):
                    found[f"hooks of {prefix[:-1]}"] = [*found.get(f"hooks of {prefix[:-1]}", ()), *_values(now)]
                elif isinstance(before, Tensor):
                    found[prefix + key] = _of_tensor(before)
                elif not isinstance(before, _TRACES) and key != "training":
                    found[prefix + key] = (type(now), repr(now)) if isinstance(now, int | float | str) else _Is(now)
        for key, value in vars(torch_modules).items():
            if key.startswith("_global_") and key.endswith("hooks"):
                found["hooks of all modules"] = [*found.get("hooks of all modules", ()), *_values(value)]
        for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers()):
            found[name] = _of_tensor(tensor)
            for key, value in self._optimizer.state.get(tensor, {}).items():
                found[f"the optimiser's {key} of {name}"] = _of_tensor(value)
        return found

    def _put_back(self) -> None:
        for module, attributes in self._attributes.items():
            vars(module).clear()
            vars(module).update(attributes)
        for container, content in self._contents.values():
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


@dataclass(frozen=True, eq=False)
class _Is:
    """Equal for one and the same object; holds it, so that no other comes to lie where it was."""

    it: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Is) and self.it is other.it

    __hash__ = None  # type: ignore[assignment]


def _is_of_torch(key: str) -> bool:
    """Whether this attribute of a module holds its hooks or what it is made of."""
    return key in _HELD or (key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")))


def _values(hooks: Any) -> list[_Is]:
    return [_Is(hook) for hook in (hooks or {}).values()]


def _of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """Where it lies, how it is read, a checksum of its bytes, and what autograd does with it."""
    read = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad)
    hooks = [*_values(tensor._backward_hooks), *_values(getattr(tensor, "_post_accumulate_grad_hooks", None))]
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return (*read, hooks, zlib.crc32(content.numpy().data))
