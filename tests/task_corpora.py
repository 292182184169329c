"""Corpora of tasks, built as a config builds them, for the tests of tasks."""

from __future__ import annotations

from typing import Any

import torch

from gpt_ablate.data import tasks  # noqa: F401 (registers them)
from gpt_ablate.data.corpus import Corpus, DataContext, Examples, sources

CPU = torch.device("cpu")
Row = list[int]


def no_tokenizer(texts: object) -> Any:
    raise AssertionError("a task has a vocabulary of its own")


def make(name: str, length: int, stride: int | None = None, replacement: bool = False, **parameters: Any) -> Corpus:
    context = DataContext(length, length if stride is None else stride, replacement, no_tokenizer)
    return sources.build({"name": name, **parameters}, context)


def small(name: str, length: int, **parameters: Any) -> Corpus:
    """With fewer examples, in two blocks."""
    few = {} if name == "modular" else {"train_examples": 1500, "val_examples": 300}
    return make(name, length, **few | parameters)


def rows(split: Examples) -> tuple[list[Row], list[Row]]:
    inputs, targets = split.batch(torch.arange(split.for_evaluation().n_windows), CPU)
    return inputs.tolist(), targets.tolist()
