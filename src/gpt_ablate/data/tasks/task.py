"""What all tasks share: how examples are kept or generated, how they are split, and the corpus they make."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt_ablate.config.fingerprint import digest
from gpt_ablate.config.metrics import Metric
from gpt_ablate.data import orders
from gpt_ablate.data.corpus import Corpus, DataContext, Order, sources
from gpt_ablate.data.ids import Ids
from gpt_ablate.data.tasks.draws import Draws, Ints
from gpt_ablate.utils import random_streams
from gpt_ablate.utils.errors import Problem, UsageError

METRICS = (
    Metric("eval/accuracy", "final validation accuracy", "fraction", lower_is_better=False, curve="eval/accuracy"),
    Metric(
        "eval/train_accuracy",
        "final training accuracy",
        "fraction",
        lower_is_better=False,
        curve="eval/train_accuracy",
    ),
)
"""What a run on a task is measured by: the fraction of counted targets that the model's likeliest token hits."""

SplitName = Literal["train", "val"]
Rows = npt.NDArray[Any]
"""Inputs and targets of n examples, (2, n, T) integers."""
BLOCK = 1024
"""Examples that are generated together."""
_CANDIDATES = BLOCK * 5 // 4  # of which a block of training examples nearly always takes 7/8
_ROUNDS = 64
_FEWEST = 8  # different examples that are held out
_MOST_BYTES = 1 << 32


@dataclass(frozen=True)
class Task(ABC):
    """What decides the examples of a task; a subclass adds its parameters."""

    context_length: int
    """T, the length of an example."""
    vocab_size: int
    """V."""
    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Grows when the same parameters give other examples."""
    breadth: ClassVar[str]
    """The parameter that makes more different examples when it grows."""

    @property
    @abstractmethod
    def answers(self) -> int:
        """How many tokens a counted target may be; all are equally frequent."""

    @abstractmethod
    def problems(self) -> list[Problem]:
        """What keeps an example from being made."""

    @abstractmethod
    def draw(self, draws: Draws, n: int) -> tuple[Ints, Ints]:
        """Inputs and targets of n independent examples, each (n, T)."""

    def tokenizer(self) -> Ids:
        """The vocabulary, the same for all lengths."""
        return Ids(self.vocab_size, digest(self._kind() | {"vocab_size": self.vocab_size}))

    def sha256(self, **settings: Any) -> str:
        """Hash of the task with its parameters, and of `settings`."""
        return digest(self._kind() | asdict(self) | settings)

    def _kind(self) -> dict[str, Any]:
        return {"task": self.name, "version": self.version}


def too_short(task: Task, needed: int, why: str) -> list[Problem]:
    """The problem of a context that is shorter than the shortest example."""
    if task.context_length >= needed:
        return []
    allowed = f"at least {needed} with data={task.name} ({why})"
    return [Problem("model.context_length", task.context_length, allowed)]


@dataclass(frozen=True)
class _TaskExamples(ABC):
    """One split of a task."""

    n_windows: int
    """How many examples an epoch has."""
    context_length: int
    entropy: float

    @property
    def n_tokens(self) -> int:
        """How many tokens an epoch has."""
        return self.n_windows * self.context_length

    @abstractmethod
    def rows(self, numbers: Ints) -> Rows:
        """The examples with these numbers."""

    def batch(self, windows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples with these numbers, each (B, T) int64; targets may be `IGNORED`."""
        both = torch.from_numpy(self.rows(windows.numpy()).astype(np.int64))
        if device.type == "cuda":
            both = both.pin_memory()  # so that the copy goes on beside the computation
        both = both.to(device, non_blocking=True)
        return both[0], both[1]

    def bytes_per_token(self) -> float | None:
        """None: the tokens stand for no text."""
        return None

    def unigram_entropy(self) -> float:
        """Entropy in nats of the frequencies of the targets that count."""
        return self.entropy


@dataclass(frozen=True)
class FixedExamples(_TaskExamples):
    """Examples that are the same in all epochs and runs."""

    whole: Callable[[], Rows]
    """Gives all of them, and is quick when called again."""

    def rows(self, numbers: Ints) -> Rows:
        """The examples with these numbers."""
        return self.whole()[:, numbers]

    def order(self, root: int | str, epoch: int) -> Order:
        """Each example once."""
        return orders.permutation(self.n_windows, root, f"data/{epoch}")

    def for_evaluation(self) -> FixedExamples:
        """The same examples."""
        return self


@dataclass(frozen=True)
class _Consecutive:
    """Consecutive numbers as an order."""

    numbers: range

    def __getitem__(self, positions: slice) -> Tensor:
        chosen = self.numbers[positions]
        return torch.arange(chosen.start, chosen.stop, chosen.step)


@dataclass(frozen=True)
class FreshExamples(_TaskExamples):
    """Training examples that no epoch repeats; every root has its own."""

    task: Task
    seed: int
    evaluation: FixedExamples

    def rows(self, numbers: Ints) -> Rows:
        """The examples with these numbers."""
        blocks = numbers // BLOCK
        found = np.empty((2, len(numbers), self.context_length), dtype=np.int64)
        for block in np.unique(blocks):
            here = blocks == block
            found[:, here] = _block(self.task, self.seed, "train", int(block))[:, numbers[here] % BLOCK]
        return found

    def order(self, root: int | str, epoch: int) -> Order:
        """Consecutive examples, from the first block that no epoch before has touched."""
        first = random_streams.stream(root, "data/first_block") >> 11  # numbers of examples stay below 2^63
        start = (first + (epoch - 1) * math.ceil(self.n_windows / BLOCK)) * BLOCK
        return _Consecutive(range(start, start + self.n_windows))

    def for_evaluation(self) -> FixedExamples:
        """The first examples of the training stream, as many as are held out."""
        return self.evaluation


def held_out(task: Task, seed: int, inputs: Ints) -> npt.NDArray[np.bool_]:
    """Whether each example is for validation alone: about one in eight, chosen by a hash of its inputs, (n,)."""
    factors = Draws(random_streams.stream(seed, f"data/{task.name}/held_out")).raw(task.context_length)
    mixed = (inputs.astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # as SplitMix64 ends
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(61) == 0


@functools.lru_cache(maxsize=4)
def _block(task: Task, seed: int, split: SplitName, block: int) -> Rows:
    """The examples block * BLOCK, ..., (block + 1) * BLOCK - 1 of a split, (2, BLOCK, T).

    Raises UsageError for a task that has hardly any examples.
    """
    draws = Draws(random_streams.stream(seed, f"data/{task.name}/{split}/{block}"))
    parts, found = [], 0
    for _ in range(_ROUNDS):
        both = np.stack(task.draw(draws, _CANDIDATES))
        mine = both[:, held_out(task, seed, both[0]) == (split == "val")]
        parts.append(mine.astype(_dtype(task)))
        found += mine.shape[1]
        if found >= BLOCK:
            return np.concatenate(parts, axis=1)[:, :BLOCK]
    raise _too_few(task)


def _too_few(task: Task) -> UsageError:
    allowed = f"more: data={task.name} has too few different examples to hold some out for validation"
    return UsageError([Problem(f"data.{task.breadth}", getattr(task, task.breadth), allowed)])


def _dtype(task: Task) -> np.dtype[Any]:
    """The narrowest integers for tokens and `IGNORED`."""
    return np.dtype(np.int16 if task.vocab_size <= 1 << 15 else np.int32)


@functools.lru_cache(maxsize=3)
def _whole(task: Task, seed: int, split: SplitName, n: int) -> Rows:
    """The first n examples of a split, (2, n, T); kept, since a sweep's runs share them."""
    rows = np.empty((2, n, task.context_length), dtype=_dtype(task))
    for start in range(0, n, BLOCK):
        rows[:, start : start + BLOCK] = _block(task, seed, split, start // BLOCK)[:, : n - start]
    return rows


def check(context: DataContext, name: str, problems: list[Problem]) -> None:
    """Raise UsageError for these problems, and for keys that cut a text and mean nothing for a task."""
    problems = list(problems)
    if context.stride != context.context_length:
        allowed = f"null: the examples of data={name} are no windows of a text"
        problems.append(Problem("data.stride", context.stride, allowed))
    if context.replacement:
        problems.append(
            Problem("data.replacement", True, f"false: an epoch of data={name} goes through its examples once")
        )
    if problems:
        raise UsageError(problems)


def corpus(
    context: DataContext, task: Task, *, train_examples: int, val_examples: int, fresh: bool, seed: int
) -> Corpus:
    """The corpus of a task whose examples are drawn. Raises UsageError for parameters that do not fit."""
    problems = task.problems()
    most = _MOST_BYTES // (2 * task.context_length * _dtype(task).itemsize)
    for key, n, kept in (("train_examples", train_examples, not fresh), ("val_examples", val_examples, True)):
        if kept and n > most:
            without = "; data.fresh=true has no such limit" if key == "train_examples" else ""
            allowed = f"at most {most} of this length, as they are kept in memory{without}"
            problems.append(Problem(f"data.{key}", n, allowed))
    check(context, task.name, problems)
    _block(task, seed, "train", 0)  # refuses a task of too few examples now, not in the first step
    if len(np.unique(_block(task, seed, "val", 0)[0], axis=0)) < _FEWEST:
        raise _too_few(task)

    def fixed(split: SplitName, n: int) -> FixedExamples:
        rows = functools.partial(_whole, task, seed, split, n)
        return FixedExamples(n, task.context_length, math.log(task.answers), rows)

    train: FixedExamples | FreshExamples
    if fresh:
        some = fixed("train", val_examples)
        train = FreshExamples(train_examples, task.context_length, some.entropy, task, seed, some)
    else:
        train = fixed("train", train_examples)
    settings = {"train_examples": train_examples, "val_examples": val_examples, "fresh": fresh, "seed": seed}
    return Corpus(train, fixed("val", val_examples), task.tokenizer(), task.sha256(**settings), is_task=True)


def register(name: str) -> Callable[[Callable[..., Corpus]], Callable[..., Corpus]]:
    """Make the decorated builder available as `data=<name>`, with the metrics of a task."""

    def add(builder: Callable[..., Corpus]) -> Callable[..., Corpus]:
        cast(Any, builder).metrics = METRICS
        return sources.register(name)(builder)

    return add
