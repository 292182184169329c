"""Balanced brackets."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from gpt_ablate.config.schema import Count, Seed
from gpt_ablate.data.corpus import IGNORED, Corpus, DataContext
from gpt_ablate.data.tasks.draws import Draws, Floats, Ints
from gpt_ablate.data.tasks.task import Task, corpus, register, too_short
from gpt_ablate.utils.errors import Problem


@dataclass(frozen=True)
class Dyck(Task):
    """See `dyck`."""

    kinds: int
    depth: int

    name = "dyck"
    breadth = "kinds"

    @property
    def answers(self) -> int:
        """The closing brackets."""
        return self.kinds

    def problems(self) -> list[Problem]:
        """A short context."""
        return too_short(self, 2, "two brackets")

    def draw(self, draws: Draws, n: int) -> tuple[Ints, Ints]:
        """Token 0, brackets, and token 0 once more if a place is left."""
        length = self.context_length // 2 * 2
        tokens = np.zeros((n, self.context_length + 1), dtype=np.int64)
        kinds, steps = draws.integers(self.kinds, n, length), draws.uniform(n, length)
        opens = _probability_of_opening(length, self.depth)
        examples, level = np.arange(n), np.zeros(n, dtype=np.int64)
        unclosed = np.zeros((n, self.depth), dtype=np.int64)
        for place in range(length):
            opening = steps[:, place] < opens[length - place, level]
            unclosed[examples[opening], level[opening]] = kinds[opening, place]
            level += np.where(opening, 1, -1)
            closed = unclosed[examples, np.minimum(level, self.depth - 1)]
            tokens[:, place + 1] = 1 + np.where(opening, kinds[:, place], self.kinds + closed)
        inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
        targets[targets <= self.kinds] = IGNORED
        return inputs, targets


@functools.lru_cache(maxsize=4)
def _probability_of_opening(length: int, depth: int) -> Floats:
    """By the brackets that are left and the brackets that are open, (length + 1, depth + 1): all strings alike."""
    ways = np.zeros(depth + 2)  # to close all with what is left, up to a factor
    ways[0] = 1
    opens = np.zeros((length + 1, depth + 1))
    for left in range(1, length + 1):
        after_opening, after_closing = ways[1:], np.concatenate([[0], ways[:-2]])
        total = after_opening + after_closing
        opens[left] = np.divide(after_opening, total, out=np.zeros(depth + 1), where=total > 0)
        ways = np.append(total / total.max(), 0)
    return opens


@register("dyck")
def dyck(
    context: DataContext,
    *,
    kinds: Annotated[int, Field(ge=2, le=1 << 19)] = 8,
    depth: Annotated[int, Field(ge=1, le=64)] = 10,
    train_examples: Count = 100_000,
    val_examples: Count = 3000,
    fresh: bool = False,
    seed: Seed = 0,
) -> Corpus:
    """Balanced brackets of bounded depth, Dyck-(k, m) (Hewitt et al. 2020, arXiv:2010.07515).

    Also in Yao et al. 2021 (arXiv:2105.11115), whose sizes are the defaults. An example is token 0 and a balanced
    string of brackets, at most `depth` of them open at a time. The string is drawn from all of its length, each with
    the same probability; the papers draw every bracket with fixed probabilities. Token 1, ..., `kinds` opens, token
    `kinds` + j closes what token j opens. A target counts where the next token closes: its kind is that of the last
    bracket that is still open.
    """
    task = Dyck(context.context_length, 2 * kinds + 1, kinds, depth)
    return corpus(context, task, train_examples=train_examples, val_examples=val_examples, fresh=fresh, seed=seed)
