"""Modular arithmetic, the set-up in which grokking was found."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from gpt_ablate.config.fingerprint import digest
from gpt_ablate.config.schema import Seed
from gpt_ablate.data.corpus import IGNORED, Corpus, DataContext, entropy
from gpt_ablate.data.ids import Ids
from gpt_ablate.data.tasks.draws import Draws, Ints
from gpt_ablate.data.tasks.task import FixedExamples, Rows, check, register
from gpt_ablate.utils import random_streams
from gpt_ablate.utils.errors import Problem

Operation = Literal["add", "subtract", "divide"]
_VERSION = 1
_LENGTH = 4


@register("modular")
def modular(
    context: DataContext,
    *,
    p: Annotated[int, Field(ge=2, le=2048)] = 97,
    operation: Operation = "add",
    train_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    seed: Seed = 0,
) -> Corpus:
    """Arithmetic modulo p (Power et al. 2022, arXiv:2201.02177, section 2 and appendix A.1).

    An example is the four tokens of "a o b =", and the one target that counts is c, at "=". Numbers are their own
    tokens; p is the operation, p + 1 is "=", and p + 2 fills a longer context after "=". All p^2 pairs (a, b), without
    b = 0 where c = a / b, are in one split: a random `train_fraction` of them is for training, the others for
    validation.
    """
    length = context.context_length
    problems = []
    if length < _LENGTH:
        problems.append(Problem("model.context_length", length, f"at least {_LENGTH} with data=modular: a o b ="))
    if operation == "divide" and any(p % it == 0 for it in range(2, p)):
        problems.append(Problem("data.p", p, "a prime with data.operation=divide"))
    pairs = p * (p - 1) if operation == "divide" else p * p
    n = round(train_fraction * pairs)
    if not 0 < n < pairs:
        allowed = f"a fraction that leaves pairs to both splits: it makes {n} of {pairs} pairs for training"
        problems.append(Problem("data.train_fraction", train_fraction, allowed))
    check(context, "modular", problems)
    task = {"task": "modular", "version": _VERSION, "p": p}
    sha256 = digest({**task, "operation": operation, "train_fraction": train_fraction, "seed": seed, "T": length})

    def split(start: int, stop: int) -> FixedExamples:
        answers = _equations(p, operation, seed)[start:stop, 2]
        rows = functools.partial(_rows, p, operation, seed, length, start, stop)
        return FixedExamples(len(answers), length, entropy(np.bincount(answers)), rows)

    return Corpus(split(0, n), split(n, pairs), Ids(p + 3, digest(task)), sha256, is_task=True)


@functools.lru_cache(maxsize=1)
def _equations(p: int, operation: Operation, seed: int) -> Ints:
    """All a, b and c in random order, (pairs, 3)."""
    a, b = np.divmod(np.arange(p * p), p)
    if operation == "divide":
        a, b = a[b > 0], b[b > 0]
        c = a * np.array([0, *(pow(it, -1, p) for it in range(1, p))])[b] % p
    else:
        c = (a + b if operation == "add" else a - b) % p
    order = Draws(random_streams.stream(seed, "data/modular/order")).raw(len(a)).argsort(kind="stable")
    return np.stack([a, b, c], axis=1)[order]


@functools.lru_cache(maxsize=2)
def _rows(p: int, operation: Operation, seed: int, length: int, start: int, stop: int) -> Rows:
    """The examples of a split, (2, n, T)."""
    a, b, c = _equations(p, operation, seed)[start:stop].T
    rows = np.full((2, len(a), length), IGNORED, dtype=np.int16)
    rows[0] = p + 2
    rows[0, :, :_LENGTH] = np.stack([a, np.full_like(a, p), b, np.full_like(a, p + 1)], axis=1)
    rows[1, :, _LENGTH - 1] = c
    return rows
