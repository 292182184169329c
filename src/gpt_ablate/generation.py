"""Text from a model: token by token, with a key-value cache."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from . import tokenizer
from .config import SamplingConfig
from .model import GPT


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

    top-k: Fan et al. 2018; top-p (nucleus): Holtzman et al. 2020, 3.1.
    Raises FloatingPointError for logits that are not finite.
    """
    logits = logits.float().cpu()
    if not logits.isfinite().all():
        raise FloatingPointError("the model's logits are not finite")
    if settings.temperature == 0:
        return int(logits.argmax())
    logits, ids = (logits / settings.temperature).sort(descending=True, stable=True)
    if settings.top_k is not None:
        logits, ids = logits[: settings.top_k], ids[: settings.top_k]
    p = logits.softmax(dim=0)
    if settings.top_p is not None:
        before = p.cumsum(dim=0) - p
        p = p[before < settings.top_p]
    return int(ids[torch.multinomial(p, 1, generator=generator)])


def stream_text(tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens as it becomes complete (a character may take several tokens)."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    encoding = tokenizer.gpt2()
    for token in tokens:
        if text := decoder.decode(encoding.decode_single_token_bytes(token)):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def sample_text(model: GPT, settings: SamplingConfig, generator: torch.Generator) -> str:
    """What the model says after `settings.prompt`."""
    return "".join(stream_text(generate(model, tokenizer.encode(settings.prompt), settings, generator)))
