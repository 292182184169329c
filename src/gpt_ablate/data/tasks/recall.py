"""Multi-query associative recall."""

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
class Recall(Task):
    """See `recall`."""

    pairs: int
    power: float
    filler: bool

    name = "recall"
    breadth = "vocab_size"

    @property
    def answers(self) -> int:
        """The values: the upper half of the vocabulary."""
        return self.vocab_size - self.vocab_size // 2

    def problems(self) -> list[Problem]:
        """A short context, or fewer keys than pairs."""
        needed = 2 * (self.pairs + 1)
        problems = too_short(self, 4 * self.pairs, "4 * data.pairs: pairs and queries take two tokens each")
        if self.vocab_size < needed:
            allowed = f"at least {needed} = 2 * (data.pairs + 1), so that the keys of an example differ"
            problems.append(Problem("data.vocab_size", self.vocab_size, allowed))
        return problems

    def draw(self, draws: Draws, n: int) -> tuple[Ints, Ints]:
        """Pairs, then queries at places from the power law."""
        first_value, start = self.vocab_size // 2, 2 * self.pairs
        keys = 1 + draws.distinct(first_value - 1, n, self.pairs)
        values = first_value + draws.distinct(self.answers, n, self.pairs)
        gaps = np.arange(1.0, (self.context_length - start) // 2 + 1)
        queries = start + 2 * draws.weighted(gaps ** (self.power - 1), n, self.pairs)
        inputs = np.zeros((n, self.context_length), dtype=np.int64)
        inputs[:, 0:start:2], inputs[:, 1:start:2] = keys, values
        np.put_along_axis(inputs, queries, keys, axis=1)
        if self.filler:
            empty = inputs == 0
            inputs[empty] = draws.integers(self.vocab_size, *inputs.shape)[empty]
        targets = np.full_like(inputs, IGNORED)
        np.put_along_axis(targets, queries, values, axis=1)
        return inputs, targets


@register("recall")
def recall(
    context: DataContext,
    *,
    vocab_size: Annotated[int, Field(ge=4, le=1 << 20)] = 8192,
    pairs: Count = 4,
    power: Annotated[float, Field(gt=0, le=1)] = 0.01,
    filler: bool = False,
    train_examples: Count = 100_000,
    val_examples: Count = 3000,
    fresh: bool = False,
    seed: Seed = 0,
) -> Corpus:
    """Multi-query associative recall (Arora et al. 2023, arXiv:2312.04927, section 4 and figure 2).

    An example begins with `pairs` keys, each followed by its value. Then comes every key once more, in any order, and
    the target there is its value; no other target counts. Keys are different tokens 1, ..., V/2 - 1, values different
    tokens V/2, ..., V - 1, where V is `vocab_size`. Queries stand at even places after the pairs. The i-th of these
    has probability proportional to i^(power - 1), and the keys draw one after another among those that are left, as in
    the authors' generator. All other inputs are 0, or random tokens of the whole vocabulary with `filler`.
    """
    task = Recall(context.context_length, vocab_size, pairs, power, filler)
    return corpus(context, task, train_examples=train_examples, val_examples=val_examples, fresh=fresh, seed=seed)
