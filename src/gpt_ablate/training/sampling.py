"""The text that a model writes while it trains."""

from __future__ import annotations

import torch

from gpt_ablate.config.schema import SamplingConfig
from gpt_ablate.data import tokenizer
from gpt_ablate.models.generation import generate
from gpt_ablate.models.gpt import GPT


def sample_text(model: GPT, settings: SamplingConfig, generator: torch.Generator) -> str:
    """What the model says after `settings.prompt`."""
    return "".join(tokenizer.stream_text(generate(model, tokenizer.encode(settings.prompt), settings, generator)))
