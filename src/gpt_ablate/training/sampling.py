"""The text that a model writes while it trains."""

from __future__ import annotations

import torch

from gpt_ablate.config.schema import Config, SamplingConfig
from gpt_ablate.data.corpus import Corpus
from gpt_ablate.data.tokenizers import Tokenizer
from gpt_ablate.models.generation import generate
from gpt_ablate.models.gpt import GPT
from gpt_ablate.utils.errors import Problem


def check(config: Config, corpus: Corpus) -> list[Problem]:
    """A prompt that has no tokens, where samples are drawn from it."""
    if corpus.is_task or config.trainer.sample_every == 0:
        return []
    try:
        corpus.tokenizer.encode(config.sampling.prompt)
    except ValueError as error:
        told = f"text that the tokenizer has tokens for ({error}); trainer.sample_every=0 draws no samples"
        return [Problem("sampling.prompt", config.sampling.prompt, told)]
    return []


def sample_text(model: GPT, tokenizer: Tokenizer, settings: SamplingConfig, generator: torch.Generator) -> str:
    """What the model says after `settings.prompt`. Raises ValueError for a prompt that has no tokens."""
    return "".join(tokenizer.stream_text(generate(model, tokenizer.encode(settings.prompt), settings, generator)))
