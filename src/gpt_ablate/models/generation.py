"""Text from a model: token by token, with a key-value cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gpt_ablate.config.schema import SamplingConfig
from gpt_ablate.models.gpt import GPT


@torch.inference_mode()
def generate(model: GPT, prompt: list[int], settings: SamplingConfig, generator: torch.Generator) -> Iterator[int]:
    """Up to `settings.max_new_tokens` token ids after `prompt`, drawn in evaluation mode.

    The model sees the last T tokens: of a longer prompt the beginning is dropped, and
    past T each token is drawn from the T before it (positions move, so no cache serves there).
    """
    was_training = model.training
    model.eval()
    try:
        device = model.token_embedding.weight.device
        window = model.context_length
        ids = prompt[-window:]
        cache = model.new_cache(1)
        fresh = torch.tensor([ids], device=device)
        for _ in range(settings.max_new_tokens):
            if cache[0].length + fresh.shape[1] <= window:
                features = model.features(fresh, cache)
            else:
                features = model.features(torch.tensor([ids[-window:]], device=device))
            token = draw(model.head(features[0, -1]), settings, generator)
            yield token
            ids.append(token)
            fresh = torch.tensor([[token]], device=device)
    finally:
        model.train(was_training)


def draw(logits: Tensor, settings: SamplingConfig, generator: torch.Generator) -> int:
    """One token id from logits (V,): the likeliest at temperature 0, else by chance among top-k and top-p.

    top-k: Fan et al. 2018; top-p (nucleus): Holtzman et al. 2020, 3.1. One number is drawn for a token, and
    the cumulative distribution inverted at it (Devroye 1986, II.2).
    Raises FloatingPointError for logits that are not finite.
    """
    logits = logits.float().cpu()
    least, most = logits.aminmax()  # neither is finite where one of them is NaN
    if not (least.isfinite() and most.isfinite()):
        raise FloatingPointError("the model's logits are not finite")
    if settings.temperature == 0:
        return int(logits.argmax())
    temperature = max(settings.temperature, torch.finfo(logits.dtype).tiny)  # a lower one would be 0 to torch
    logits, ids = (logits - most) / temperature, torch.arange(len(logits))
    if settings.top_k is not None or settings.top_p is not None:
        logits, ids = logits.sort(descending=True, stable=True)
        logits = logits[: settings.top_k]
    cumulative = logits.softmax(dim=0).double().cumsum(dim=0)
    if settings.top_p is not None:
        cumulative = cumulative[: 1 + int(torch.searchsorted(cumulative, settings.top_p))]
    point = torch.rand((), dtype=torch.float64, generator=generator) * cumulative[-1]
    return int(ids[torch.searchsorted(cumulative, point, right=True).clamp(max=len(cumulative) - 1)])
