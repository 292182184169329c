"""Where one training step's memory, arithmetic and time go, part by part of a model."""

from __future__ import annotations

import functools
import statistics
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gpt_ablate.config.schema import Config
from gpt_ablate.models import sharing
from gpt_ablate.models.gpt import GPT
from gpt_ablate.models.objectives import loss_per_token
from gpt_ablate.training.optimizers import Optimizer, optimizers
from gpt_ablate.utils import devices

REST = "head and loss"
"""What happens outside every part: these two, the embeddings' sum, and a layer's additions, which keep nothing."""
PASSES = ("forward", "backward", "optimiser")


def parts_of(model: nn.Module) -> dict[str, str]:
    """Name of a module -> its part: a layer's children by their own name, over all layers; others by theirs."""
    parts = {}
    for name, _ in model.named_modules():
        levels = [level for level in name.split(".") if not level.isdigit()]
        if levels[:2] == ["layers", "residual"]:  # its methods call the other parts
            continue
        if len(levels) > 1 or levels[0] not in ("", "layers", "head"):
            parts[name] = levels[1] if levels[0] == "layers" else levels[0]
    return parts


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations return, while they live; what kernels use inside is not seen.

    Views of `there` are not counted: these were alive before.
    """

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Step:
    """A model, its optimiser and one batch, to be passed through as in training."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        self.device = devices.pick(config.trainer.device)
        self.dtype = config.trainer.dtype
        self.model = GPT(config, vocab_size).to(self.device).train()
        self.optimizer: Optimizer = optimizers.build(config.optimizer.node(), self.model, config.trainer.grad_clip)
        shape = (config.data.batch_size // config.trainer.accumulate, config.model.context_length + 1)
        tokens = torch.randint(vocab_size, shape, device=self.device)
        self.batch = tokens[:, :-1], tokens[:, 1:]

    def forward(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return loss_per_token(self.model, *self.batch)

    def run(self) -> Iterator[str]:
        """The three passes; yields the name of each once it is done."""
        loss = self.forward()
        yield PASSES[0]
        self.optimizer.begin(self.optimizer.lr, loss)
        loss.backward()
        yield PASSES[1]
        self.optimizer.finish()
        yield PASSES[2]

    def tensors(self) -> list[Tensor]:
        """What is alive before a step begins: weights, buffers, optimiser state, batch."""
        state = [value for its in self.optimizer.state.values() for value in its.values()]
        return [*self.model.parameters(), *self.model.buffers(), *state, *self.batch]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def profile(config: Config, vocab_size: int, repeats: int = 3) -> dict[str, Any]:
    """One training step of `config` on random tokens, as a whole and by part: bytes, FLOPs, seconds (medians).

    Saved bytes are what is kept between forward and backward, weights apart, counted at the part that saved a storage
    first; a loss in parts computes gradients ahead, and these count too. Peaks are of the tensors alive at once beside
    weights and optimiser state; a step's has those gradients that are not used yet.
    """
    step = _Step(config, vocab_size)
    for _ in step.run():  # the first is not like the others
        pass
    parts = parts_of(step.model)
    devices.reset_peak_memory(step.device)
    saved = _saved(step, parts)
    peaks = _peaks(step)
    flops, all_flops = _flops(step, parts)
    seconds, passes = _seconds(step, parts, repeats)
    names = dict.fromkeys([*parts.values(), REST])
    return {
        "parts": {
            name: {
                "saved_bytes": saved[name],
                "forward_flops": flops[name],
                "forward_seconds": seconds["forward"][name],
                "backward_seconds": seconds["backward"][name],
            }
            for name in names
        },
        "saved_bytes": sum(saved.values()),
        "forward_peak_bytes": peaks["forward"],
        "step_peak_bytes": max(peaks.values()),
        "weight_bytes": sum(p.numel() * p.element_size() for p in step.model.parameters()),
        "parameters": step.model.n_parameters(),
        "forward_flops": sum(flops.values()),
        "flops": all_flops,
        "seconds": passes,
        **_device_memory(step.device),
    }


def _device_memory(device: torch.device) -> dict[str, int]:
    memory = devices.peak_memory(device)
    if device.type == "cuda":
        memory["peak_cuda_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return memory


@contextmanager
def _inside(model: nn.Module, parts: dict[str, str]) -> Iterator[list[str]]:
    """The part whose forward runs now, innermost last."""
    stack = [REST]
    hooks = []

    def leave(*_: object) -> None:  # what a forward hook returns would take the output's place
        stack.pop()

    for name, module in model.named_modules():
        if name in parts:
            hooks.append(module.register_forward_pre_hook(lambda *_, part=parts[name]: stack.append(part)))
            hooks.append(module.register_forward_hook(leave))
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


def _saved(step: _Step, parts: dict[str, str]) -> dict[str, int]:
    there = {tensor.untyped_storage().data_ptr() for tensor in step.tensors()}
    kept: dict[int, Tensor] = {}
    saved: dict[str, int] = defaultdict(int)
    with _inside(step.model, parts) as stack:

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in there and storage.data_ptr() not in kept:
                kept[storage.data_ptr()] = tensor  # alive, or its address might come again
                saved[stack[-1]] += storage.nbytes()
            return tensor

        with _Live(step.tensors()) as live, saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = step.forward()
    saved[REST] += live.now - loss.element_size() - sum(saved.values())  # by fused kernels, out of the hook's sight
    loss.backward()
    step.model.zero_grad()
    return saved


def _peaks(step: _Step) -> dict[str, int]:
    peaks = {}
    with _Live(step.tensors()) as live:
        for name in step.run():
            peaks[name], live.peak = live.peak, live.now
    return peaks


def _flops(step: _Step, parts: dict[str, str]) -> tuple[dict[str, int], int]:
    """Of the forward pass by part, and of forward and backward: counted without numbers, on the meta device."""
    flops: dict[str, int] = defaultdict(int)
    counted = sharing.on_meta(step.model).eval()
    with FlopCounterMode(display=False) as counter, _Spans(counted, parts, counter.get_total_flops, flops):
        logits = counted(step.batch[0].to("meta"))
        flops[REST] = counter.get_total_flops() - sum(flops.values())
        logits.sum().backward()
    return flops, counter.get_total_flops()


class _Spans:
    """Adds to `amounts` by how much `reading` grows in each part's forward pass, or backward with `backward`.

    A part's backward is from the gradient's arrival at its output to its leaving the input; embeddings have none.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: dict[str, str],
        reading: Callable[[], Any],
        amounts: dict[str, Any],
        backward: bool = False,
    ) -> None:
        self.parts, self.reading, self.amounts = parts, reading, amounts
        self.began: dict[str, Any] = {}
        self.hooks = []
        for name, module in model.named_modules():
            if name not in parts or parts.get(name.rpartition(".")[0]) == parts[name]:
                continue
            start, stop = functools.partial(self._start, name), functools.partial(self._stop, name)
            if not backward:
                self.hooks += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
            elif not isinstance(module, nn.Embedding):
                self.hooks += [
                    module.register_full_backward_pre_hook(start),
                    module.register_full_backward_hook(stop),
                ]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _start(self, name: str, *_: object) -> None:
        self.began[name] = self.reading()

    def _stop(self, name: str, *_: object) -> None:
        if name in self.began:
            self.amounts[self.parts[name]] += self.reading() - self.began.pop(name)


def _seconds(step: _Step, parts: dict[str, str], repeats: int) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Medians over `repeats` steps: of each part in forward and backward, and of the passes."""

    def clock() -> float:
        step.wait()
        return time.perf_counter()

    step.optimizer.at_once = True  # so that its time is no part's
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    passes: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        forward: dict[str, float] = defaultdict(float)
        backward: dict[str, float] = defaultdict(float)
        with _Spans(step.model, parts, clock, forward), _Spans(step.model, parts, clock, backward, backward=True):
            since = clock()
            for name in step.run():
                passes[name].append(clock() - since)
                since = clock()
        for name, its in zip(PASSES, (forward, backward), strict=False):
            its[REST] = max(0.0, passes[name][-1] - sum(its.values()))
            for part, seconds in its.items():
                taken[name, part].append(seconds)
    by_part: dict[str, dict[str, float]] = {name: defaultdict(float) for name in PASSES}
    for (name, part), values in taken.items():
        by_part[name][part] = statistics.median(values)
    return by_part, {name: statistics.median(values) for name, values in passes.items()}
