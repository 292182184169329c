"""Optimisers that move weights while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal
from weakref import WeakMethod

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_step
from torch.optim.sgd import sgd as sgd_step

from gpt_ablate.config.registry import Registry
from gpt_ablate.config.rules import rule
from gpt_ablate.config.schema import Config, Positive, Probability
from gpt_ablate.kernels.embedding import Spare
from gpt_ablate.models.gpt import GPT
from gpt_ablate.utils.errors import Problem

WAITING_BYTES = 8 * 2**20
"""Of gradients, that are used together."""


Decay = Literal["all", "weights", "matrices"]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

optimizers: Registry[Callable[..., Optimizer]] = Registry("optimizer", ["model", "grad_clip"])


class Optimizer:
    """Moves the weights of a model, for one backward pass at a time.

    A gradient is used and freed soon after it is complete, so that not all are in memory at once; only clipping waits
    for the last, since it needs the norm of all. A subclass says what it keeps for a parameter and how it moves some.
    """

    def __init__(
        self,
        decays: Mapping[Tensor, float],
        lr: float,
        grad_clip: float | None = None,
        spare: Spare | None = None,
    ) -> None:
        """`decays` holds the weight decay of each parameter."""
        self.decays, self.lr, self.grad_clip, self.spare = decays, lr, grad_clip, spare
        self.at_once = grad_clip is not None
        """Whether all gradients wait for the last."""
        self.state: dict[Tensor, dict[str, Tensor]] = {parameter: self.new_state(parameter) for parameter in decays}
        """What the optimiser remembers of each parameter from step to step."""
        self._is_last, self.current_lr = False, 0.0
        self.not_finite = torch.zeros(())
        """Above 0 if the loss or a gradient of this step is not finite."""
        self._norms = torch.zeros(len(self.state), device=next(iter(self.state)).device)
        """Of the gradients, in the parameters' order; one tensor, since small ones cut up the memory they lie in."""
        self._place = {parameter: i for i, parameter in enumerate(self.state)}
        self._waiting: dict[Tensor, Tensor] = {}
        """Parameters and their gradients."""
        self._waiting_bytes = 0
        self._moved: set[Tensor] = set()
        """Parameters that this step has updated."""
        arrived = WeakMethod(self._arrived)  # a cycle through a parameter's hook is never collected
        for parameter in self.state:
            parameter.register_post_accumulate_grad_hook(lambda it: (used := arrived()) and used(it))

    def begin(self, lr: float, loss: Tensor) -> None:
        """The next backward pass completes the gradients; if `loss` is not finite, no weight is moved by it.

        It raises RuntimeError if a gradient turns out to be a part when its parameter has been moved.
        """
        self._is_last, self.current_lr = True, lr
        self.not_finite = _as_number(~loss.isfinite())

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Move the weights whose gradients wait still; the norm of all gradients.

        Once a gradient is not finite no further weight is moved; those before it have been.
        """
        self._measure()
        norm = torch.linalg.vector_norm(self._norms)
        if self.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(list(self._waiting), self.grad_clip, norm)
        self._update()
        self._norms.zero_()
        self._moved.clear()
        self._is_last = False
        return norm

    @torch.no_grad()
    def _arrived(self, parameter: Tensor) -> None:
        if not self._is_last or parameter.grad is None:
            return
        if parameter in self._moved:
            raise RuntimeError(
                "a shared parameter's gradient came in parts, and the first has been used: "
                "checkpoint its module with use_reentrant=False, or set trainer.grad_clip"
            )
        if parameter not in self._waiting:
            self._waiting_bytes += parameter.grad.nbytes
        self._waiting[parameter] = parameter.grad
        if not self.at_once and self._waiting_bytes >= WAITING_BYTES:
            self._measure()
            self._update()

    def _measure(self) -> None:
        for parameter, gradient in self._waiting.items():
            rows = torch.linalg.vector_norm(gradient, dim=-1)  # sums of fewer squares are quicker and more exact
            torch.linalg.vector_norm(rows, out=self._norms[self._place[parameter]])
        self.not_finite = torch.maximum(self.not_finite, _as_number(~self._norms.isfinite().all()))

    def _update(self) -> None:
        for decay in dict.fromkeys(self.decays[parameter] for parameter in self._waiting):
            moved = [parameter for parameter in self._waiting if self.decays[parameter] == decay]
            self.move(moved, [self._waiting[parameter] for parameter in moved], decay)
        for parameter, gradient in self._waiting.items():
            parameter.grad = None
            if self.spare:
                self.spare.give(gradient)
        self._moved |= self._waiting.keys()
        self._waiting.clear()
        self._waiting_bytes = 0

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is remembered of a parameter, before the first step."""
        raise NotImplementedError

    def move(self, parameters: list[Tensor], gradients: list[Tensor], weight_decay: float) -> None:
        """Update these parameters in place at the learning rate `current_lr`, unless `not_finite` holds."""
        raise NotImplementedError


class AdamW(Optimizer):
    """torch's fused AdamW (Loshchilov & Hutter 2019, algorithm 2).

    Unclipped, the bits are those of torch.optim.AdamW, which always waits and imports torch's compiler (2 s, 70 MB).
    """

    def __init__(self, *arguments: Any, betas: Sequence[float], **named: Any) -> None:
        self.betas = betas
        super().__init__(*arguments, **named)

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Updates so far, and the running means of the gradient and of its square."""
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }

    def move(self, parameters: list[Tensor], gradients: list[Tensor], weight_decay: float) -> None:
        """One step of AdamW."""
        states = [self.state[parameter] for parameter in parameters]
        adamw_step(
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,  # one pass over memory
            found_inf=self.not_finite,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.current_lr,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )


class SGD(Optimizer):
    """torch's fused SGD with momentum (Sutskever et al. 2013); weight decay is added to the gradient."""

    def __init__(self, *arguments: Any, momentum: float, nesterov: bool, **named: Any) -> None:
        self.momentum, self.nesterov = momentum, nesterov
        super().__init__(*arguments, **named)

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The running sum of gradients."""
        return {"momentum_buffer": torch.zeros_like(parameter, requires_grad=False)} if self.momentum else {}

    def move(self, parameters: list[Tensor], gradients: list[Tensor], weight_decay: float) -> None:
        """One step of SGD."""
        sgd_step(
            parameters,
            gradients,
            [self.state[parameter].get("momentum_buffer") for parameter in parameters],
            has_sparse_grad=False,
            foreach=False,
            fused=True,
            grad_scale=None,
            found_inf=self.not_finite,
            weight_decay=weight_decay,
            momentum=self.momentum,
            lr=self.current_lr,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
        )


def decays_of(model: GPT, weight_decay: float, decay: Decay) -> dict[Tensor, float]:
    """The weight decay of each parameter.

    With `all` every parameter decays. With `weights` norms and biases do not, with `matrices` embeddings do not either.
    """
    embeddings = {weight for it in model.modules() if isinstance(it, nn.Embedding) for weight in it.parameters()}
    spared = embeddings if decay == "matrices" else set()
    return {
        it: weight_decay if decay == "all" or (it.dim() > 1 and it not in spared) else 0.0 for it in model.parameters()
    }


@optimizers.register("adamw")
def adamw(
    model: GPT,
    grad_clip: float | None,
    *,
    lr: Positive,
    weight_decay: NotNegative,
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)],
    decay: Decay = "all",
) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019)."""
    return AdamW(decays_of(model, weight_decay, decay), lr, grad_clip, model.spare, betas=betas)


@optimizers.register("sgd")
def sgd(
    model: GPT,
    grad_clip: float | None,
    *,
    lr: Positive,
    weight_decay: NotNegative,
    momentum: Probability = 0.9,
    nesterov: bool = False,
    decay: Decay = "all",
) -> SGD:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013)."""
    decays = decays_of(model, weight_decay, decay)
    return SGD(decays, lr, grad_clip, model.spare, momentum=momentum, nesterov=nesterov)


@rule("optimizer")
def _nesterov(config: Config) -> list[Problem]:
    """Nesterov's form looks ahead along the momentum, and there must be some."""
    node = config.optimizer.node()
    if node["name"] == "sgd" and node.get("nesterov") and node.get("momentum") == 0:
        return [Problem("optimizer.momentum", node["momentum"], "above 0 with optimizer.nesterov=true")]
    return []


def _as_number(flag: Tensor) -> Tensor:
    return flag.detach().float()
