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
    """Cross-entropy of (B, T) targets in nats, reduced over all tokens."""
    features, targets = model.features(inputs).flatten(0, 1), targets.flatten()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(features.device.type):  # parts know neither
        return F.cross_entropy(model.head(features).float(), targets, reduction=reduction)
    total = summed_cross_entropy(features, model.head.weight, targets, model.spare)
    return total / len(targets) if reduction == "mean" else total


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
    log_z = logits.logsumexp(dim=-1)
    plain = (log_z - logits.gather(1, targets[:, None])[:, 0]).mean()
    terms = {"cross_entropy": plain}
    if label_smoothing > 0:
        terms["label_smoothing"] = label_smoothing * ((log_z - logits.mean(dim=-1)).mean() - plain)
    if z_loss > 0:
        terms["z_loss"] = z_loss * log_z.square().mean()
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
