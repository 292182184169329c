"""Induction heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from gpt_ablate.config.schema import Count, Seed
from gpt_ablate.data.corpus import IGNORED, Corpus, DataContext
from gpt_ablate.data.tasks.draws import Draws, Ints
from gpt_ablate.data.tasks.task import Task, corpus, register, too_short
from gpt_ablate.utils.errors import Problem


@dataclass(frozen=True)
class Induction(Task):
    """See `induction`."""

    name = "induction"
    breadth = "vocab_size"

    @property
    def answers(self) -> int:
        """All tokens but the trigger."""
        return self.vocab_size - 1

    def problems(self) -> list[Problem]:
        """A short context."""
        return too_short(self, 3, "the trigger, the token after it, the trigger")

    def draw(self, draws: Draws, n: int) -> tuple[Ints, Ints]:
        """Random tokens, with the trigger at a random place and at the end."""
        inputs = 1 + draws.integers(self.answers, n, self.context_length)
        examples, places = np.arange(n), draws.integers(self.context_length - 2, n)
        targets = np.full_like(inputs, IGNORED)
        targets[:, -1] = inputs[examples, places + 1]
        inputs[examples, places] = inputs[:, -1] = 0
        return inputs, targets


@register("induction")
def induction(
    context: DataContext,
    *,
    vocab_size: Annotated[int, Field(ge=3, le=1 << 20)] = 16,
    train_examples: Count = 100_000,
    val_examples: Count = 3000,
    fresh: bool = False,
    seed: Seed = 0,
) -> Corpus:
    """Induction heads (Olsson et al. 2022, arXiv:2209.11895), with one trigger token.

    This form is from Fu et al. 2022 (H3, arXiv:2212.14052, section 3.1), with the sizes of Gu and Dao 2023
    (arXiv:2312.00752, section 4.1.2). Token 0 is the trigger. It stands at a random place of random tokens 1, ...,
    `vocab_size` - 1, and once more at the end. The one target that counts is the last: the token after the first
    trigger.
    """
    task = Induction(context.context_length, vocab_size)
    return corpus(context, task, train_examples=train_examples, val_examples=val_examples, fresh=fresh, seed=seed)
