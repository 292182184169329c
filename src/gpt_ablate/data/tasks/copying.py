"""Copying and selective copying."""

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
class Copy(Task):
    """See `copy`."""

    symbols: int

    name = "copy"
    breadth = "symbols"

    @property
    def answers(self) -> int:
        """All tokens but blank and marker."""
        return self.vocab_size - 2

    def problems(self) -> list[Problem]:
        """A short context."""
        return too_short(self, 2 * self.symbols, "2 * data.symbols: each is shown and asked for")

    def places(self, draws: Draws, n: int) -> Ints:
        """Where symbols are shown, in order, (n, symbols)."""
        return np.tile(np.arange(self.symbols), (n, 1))

    def draw(self, draws: Draws, n: int) -> tuple[Ints, Ints]:
        """Symbols among blanks, then markers where they are asked for."""
        memory = 1 + draws.integers(self.answers, n, self.symbols)
        inputs = np.zeros((n, self.context_length), dtype=np.int64)
        np.put_along_axis(inputs, self.places(draws, n), memory, axis=1)
        inputs[:, -self.symbols :] = self.vocab_size - 1
        targets = np.full_like(inputs, IGNORED)
        targets[:, -self.symbols :] = memory
        return inputs, targets


@dataclass(frozen=True)
class SelectiveCopy(Copy):
    """See `selective_copy`."""

    name = "selective_copy"

    def places(self, draws: Draws, n: int) -> Ints:
        """Anywhere before the markers."""
        return np.sort(draws.distinct(self.context_length - self.symbols, n, self.symbols), axis=1)


Vocabulary = Annotated[int, Field(ge=4, le=1 << 20)]


@register("copy")
def copy(
    context: DataContext,
    *,
    vocab_size: Vocabulary = 10,
    symbols: Count = 10,
    train_examples: Count = 100_000,
    val_examples: Count = 3000,
    fresh: bool = False,
    seed: Seed = 0,
) -> Corpus:
    """Copying (Hochreiter and Schmidhuber 1997; Arjovsky et al. 2015, arXiv:1511.06464).

    An example shows `symbols` random tokens 1, ..., `vocab_size` - 2, then blanks (token 0), then as many markers
    (token `vocab_size` - 1). The targets at the markers are the symbols in their order; no other target counts.
    """
    task = Copy(context.context_length, vocab_size, symbols)
    return corpus(context, task, train_examples=train_examples, val_examples=val_examples, fresh=fresh, seed=seed)


@register("selective_copy")
def selective_copy(
    context: DataContext,
    *,
    vocab_size: Vocabulary = 16,
    symbols: Count = 16,
    train_examples: Count = 100_000,
    val_examples: Count = 3000,
    fresh: bool = False,
    seed: Seed = 0,
) -> Corpus:
    """Selective copying (Jing et al. 2019, arXiv:1706.02761; Gu and Dao 2023, arXiv:2312.00752, section 4.1.1).

    As `copy`, but the symbols stand at random places among the blanks, so that a model cannot find them by place.
    """
    task = SelectiveCopy(context.context_length, vocab_size, symbols)
    return corpus(context, task, train_examples=train_examples, val_examples=val_examples, fresh=fresh, seed=seed)
