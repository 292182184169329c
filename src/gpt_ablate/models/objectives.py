"""What training minimises, and the loss that is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from gpt_ablate.config.registry import Registry
from gpt_ablate.config.schema import Probability
from gpt_ablate.kernels.cross_entropy import summed_cross_entropy
from gpt_ablate.models.gpt import GPT

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Terms = dict[str, Tensor]
"""What training minimises, term by term; `cross_entropy` is always there, and training minimises their sum."""
Objective = Callable[[GPT, Tensor, Tensor], Terms]

objectives: Registry[Callable[..., Terms]] = Registry("objective", ["model", "inputs", "targets"])


def loss_per_token(model: GPT, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of (B, T) targets in nats, reduced over those that count: a target below 0 does not."""
    features, targets = model.features(inputs).flatten(0, 1), targets.flatten()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(features.device.type):  # parts know neither
        return F.cross_entropy(model.head(features).float(), targets, reduction=reduction)
    total = summed_cross_entropy(features, model.head.weight, targets, model.spare)
    return total / n_counted(targets) if reduction == "mean" else total


def n_counted(targets: Tensor) -> Tensor:
    """How many targets count; at least 1, since the mean of none is 0 here."""
    return (targets >= 0).sum().clamp(min=1)


def answers(model: GPT, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats of the (B, T) targets that count, and how many of them are the likeliest token."""
    counted = targets >= 0
    logits, wanted = model.head(model.features(inputs)[counted]).float(), targets[counted]
    return F.cross_entropy(logits, wanted, reduction="sum"), (logits.argmax(dim=-1) == wanted).sum()


@objectives.register("cross_entropy")
def cross_entropy(
    model: GPT, inputs: Tensor, targets: Tensor, *, z_loss: NotNegative = 0.0, label_smoothing: Probability = 0.0
) -> Terms:
    """Mean cross-entropy in nats per token.

    `z_loss` adds z_loss log(Z)^2, where Z is the sum of the exponentials of a token's logits (Chowdhery et al. 2022,
    section 5). `label_smoothing` gives that share of a target's probability to all tokens alike (Szegedy et al. 2016,
    section 7); its term is what this adds to the cross-entropy.
    """
    if z_loss == 0 and label_smoothing == 0:
        return {"cross_entropy": loss_per_token(model, inputs, targets)}
    logits, targets = model(inputs).flatten(0, 1).float(), targets.flatten()
    log_z, ignored = logits.logsumexp(dim=-1), targets < 0

    def mean(of_tokens: Tensor) -> Tensor:
        return of_tokens.masked_fill(ignored, 0.0).sum() / n_counted(targets)

    plain = mean(log_z - logits.gather(1, targets.clamp(min=0)[:, None])[:, 0])
    terms = {"cross_entropy": plain}
    if label_smoothing > 0:
        terms["label_smoothing"] = label_smoothing * (mean(log_z - logits.mean(dim=-1)) - plain)
    if z_loss > 0:
        terms["z_loss"] = z_loss * mean(log_z.square())
    return terms


def auxiliary_losses(model: GPT) -> Terms:
    """The terms that modules left in their attribute `auxiliary_losses` in the last forward pass, summed by name.

    A module that adds to what training minimises fills that dictionary, name -> scalar, in its `forward`.
    """
    found: Terms = {}
    for module in model.modules():
        left: Any = module.__dict__.get("auxiliary_losses")
        if left:
            for name, term in left.items():
                found[name] = found[name] + term if name in found else term
            left.clear()
    return found
