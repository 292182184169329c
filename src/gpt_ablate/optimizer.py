"""AdamW that moves weights while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from .config import OptimizerConfig
from .embedding import Spare

WAITING_BYTES = 8 * 2**20
"""Of gradients, that are used together."""


class AdamW:
    """torch's fused AdamW (Loshchilov & Hutter 2019, algorithm 2), for one backward pass at a time.

    A gradient is used and freed soon after it is complete, so that not all are in memory at once; only clipping waits
    for the last, since it needs the norm of all. Unclipped, the bits are those of torch.optim.AdamW, which always waits
    and imports torch's compiler (2 s, 70 MB).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        settings: OptimizerConfig,
        grad_clip: float | None = None,
        spare: Spare | None = None,
    ) -> None:
        self.settings, self.grad_clip, self.spare = settings, grad_clip, spare
        self.at_once = grad_clip is not None
        """Whether all gradients wait for the last."""
        self.state: dict[Tensor, dict[str, Tensor]] = {
            parameter: {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
            for parameter in parameters
        }
        """Of each parameter: updates so far, and the running means of its gradient and of the gradient's square."""
        self._is_last, self._lr = False, 0.0
        self._not_finite = torch.zeros(())
        self._norms = torch.zeros(len(self.state), device=next(iter(self.state)).device)
        """Of the gradients, in the parameters' order; one tensor, since small ones cut up the memory they lie in."""
        self._place = {parameter: i for i, parameter in enumerate(self.state)}
        self._waiting: dict[Tensor, Tensor] = {}
        """Parameters and their gradients."""
        self._moved: set[Tensor] = set()
        """Parameters that this step has updated."""
        arrived = WeakMethod(self._arrived)  # a cycle through a parameter's hook is never collected
        for parameter in self.state:
            parameter.register_post_accumulate_grad_hook(lambda it: (used := arrived()) and used(it))

    def begin(self, lr: float, loss: Tensor) -> None:
        """The next backward pass completes the gradients; if `loss` is not finite, no weight is moved by it.

        It raises RuntimeError if a gradient turns out to be a part when its parameter has been moved.
        """
        self._is_last, self._lr = True, lr
        self._not_finite = _as_number(~loss.isfinite())

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
        self._waiting[parameter] = parameter.grad
        if not self.at_once and sum(gradient.nbytes for gradient in self._waiting.values()) >= WAITING_BYTES:
            self._measure()
            self._update()

    def _measure(self) -> None:
        for parameter, gradient in self._waiting.items():
            rows = torch.linalg.vector_norm(gradient, dim=-1)  # sums of fewer squares are quicker and more exact
            torch.linalg.vector_norm(rows, out=self._norms[self._place[parameter]])
        self._not_finite = torch.maximum(self._not_finite, _as_number(~self._norms.isfinite().all()))

    def _update(self) -> None:
        states = [self.state[parameter] for parameter in self._waiting]
        beta1, beta2 = self.settings.betas
        adamw(
            list(self._waiting),
            list(self._waiting.values()),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,  # one pass over memory
            found_inf=self._not_finite,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=self._lr,
            weight_decay=self.settings.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        for parameter, gradient in self._waiting.items():
            parameter.grad = None
            if self.spare:
                self.spare.give(gradient)
        self._moved |= self._waiting.keys()
        self._waiting.clear()


def _as_number(flag: Tensor) -> Tensor:
    return flag.detach().float()
