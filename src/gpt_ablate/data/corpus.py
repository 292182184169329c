"""A data set as a run sees it: examples for training and validation, and the tokenizer."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gpt_ablate.config.registry import Registry
from gpt_ablate.config.schema import DataConfig
from gpt_ablate.data import orders
from gpt_ablate.data.tokenizers import Texts, Tokenizer
from gpt_ablate.utils.errors import Problem, UsageError

IGNORED = -100
"""A target that does not count, as in `torch.nn.functional.cross_entropy`."""
_PART = 1 << 20


class Order(Protocol):
    """Numbers of examples, in the order in which an epoch visits them."""

    def __getitem__(self, positions: slice) -> Tensor:
        """The numbers at these positions, int64."""


class Examples(Protocol):
    """One split: numbered examples of T inputs and T targets."""

    @property
    def n_windows(self) -> int:
        """How many examples an epoch has."""

    @property
    def n_tokens(self) -> int:
        """How many tokens the split has."""

    def batch(self, windows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples with these numbers, each (B, T) int64; targets may be `IGNORED`."""

    def order(self, root: int | str, epoch: int) -> Order:
        """The order of an epoch, counted from 1; `root` as in `random_streams`."""

    def for_evaluation(self) -> Examples:
        """What an evaluation goes through, from the first example to the last."""

    def bytes_per_token(self) -> float | None:
        """Mean length in UTF-8 bytes of the targets of `for_evaluation`; None if they stand for no text."""

    def unigram_entropy(self) -> float:
        """Entropy in nats of the frequencies of the targets that count."""


@dataclass(frozen=True)
class Split:
    """Tokens, cut into windows of T inputs and the T targets one token later."""

    tokens: Any
    """(N,) unsigned integers; may be memory-mapped."""
    context: int
    stride: int
    tokenizer: Tokenizer
    replacement: bool = False
    """Whether windows are drawn at random with replacement, instead of each once in an epoch."""

    @property
    def n_tokens(self) -> int:
        """How many tokens the split has."""
        return len(self.tokens)

    @property
    def n_windows(self) -> int:
        """How many whole windows there are."""
        return max(0, (len(self.tokens) - 1 - self.context) // self.stride + 1)

    def batch(self, windows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the given windows, each (B, T) int64."""
        starts = [window * self.stride for window in windows.tolist()]
        rows = np.stack([self.tokens[start : start + self.context + 1] for start in starts])
        chunk = torch.from_numpy(rows.astype(np.int64))
        if device.type == "cuda":
            chunk = chunk.pin_memory()  # so that the copy goes on beside the computation
        chunk = chunk.to(device, non_blocking=True)
        return chunk[:, :-1], chunk[:, 1:]

    def order(self, root: int | str, epoch: int) -> Order:
        """The windows in the order in which `epoch` visits them; `root` as in `random_streams`."""
        draw = orders.with_replacement if self.replacement else orders.permutation
        return draw(self.n_windows, root, f"data/{epoch}")

    def for_evaluation(self) -> Split:
        """The same tokens in windows that do not overlap: every target counts once."""
        return replace(self, stride=self.context, replacement=False)

    def bytes_per_token(self) -> float | None:
        """Mean length in UTF-8 bytes of the targets that an evaluation of all windows counts."""
        lengths = self.tokenizer.byte_lengths()
        if lengths is None:
            return None
        targets = self.tokens[1 : self.for_evaluation().n_windows * self.context + 1]
        parts = range(0, len(targets), _PART)
        return sum(int(lengths[targets[start : start + _PART]].sum()) for start in parts) / len(targets)

    def unigram_entropy(self) -> float:
        """Entropy of the token frequencies in nats: the loss of a model that knows nothing else."""
        counts = np.zeros(self.tokenizer.vocab_size, dtype=np.int64)
        for start in range(0, len(self.tokens), _PART):  # a part at a time: the whole may not fit in memory
            counts += np.bincount(self.tokens[start : start + _PART], minlength=len(counts))
        return entropy(counts)


def entropy(counts: np.ndarray[Any, Any]) -> float:
    """Entropy in nats of frequencies."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


@dataclass(frozen=True)
class Corpus:
    """The two splits of a data set, its tokenizer, and the SHA-256 of what they were made from.

    `stored_sha256` is that of texts as they lie, which older versions took, where they were not read so
    (`texts.universal`).
    """

    train: Examples
    val: Examples
    tokenizer: Tokenizer
    sha256: str
    stored_sha256: str | None = None
    is_task: bool = False
    """Whether targets have right answers, so that the accuracy is evaluated too."""

    def describe(self) -> dict[str, float | int | str | None]:
        """What a run records of its data; entropies in nats per token."""
        return self._described

    @cached_property
    def _described(self) -> dict[str, float | int | str | None]:
        return {
            "sha256": self.sha256,
            "tokenizer_sha256": self.tokenizer.sha256,
            "vocab_size": self.tokenizer.vocab_size,
            "train_tokens": self.train.n_tokens,
            "val_tokens": self.val.n_tokens,
            "train_windows": self.train.n_windows,
            "val_windows": self.val.for_evaluation().n_windows,
            "train_bytes_per_token": self.train.bytes_per_token(),
            "val_bytes_per_token": self.val.bytes_per_token(),
            "unigram_entropy": self.train.unigram_entropy(),
            "ln_vocab": math.log(self.tokenizer.vocab_size),
        }


@dataclass(frozen=True)
class DataContext:
    """What the framework supplies to the builder of a data set."""

    context_length: int
    """T."""
    stride: int
    """Tokens from one window to the next."""
    replacement: bool
    make_tokenizer: Callable[[Texts], Tokenizer]
    """The tokenizer that the config chooses, trained on these texts if it is one that is trained.

    Raises UsageError. A data set without texts has a vocabulary of its own and does not call it.
    """
    tokenizer_name: str = "gpt2"
    """The option of `tokenizer` that the config chooses; "own" leaves the tokenizer to the data set."""

    def split(self, tokens: Any, tokenizer: Tokenizer) -> Split:
        """Tokens cut into windows."""
        return Split(tokens, self.context_length, self.stride, tokenizer, self.replacement)

    def of_texts(self, train: Texts, val: Texts, sha256: str, stored_sha256: str | None = None) -> Corpus:
        """The corpus of the documents of both splits. Raises UsageError for a text that has no tokens."""
        tokenizer = self.make_tokenizer(train)
        splits = [self.split(encode_all(texts, tokenizer), tokenizer) for texts in (train, val)]
        return Corpus(splits[0], splits[1], tokenizer, sha256, stored_sha256)


def encode_all(texts: Texts, tokenizer: Tokenizer) -> Any:
    """Tokens of all documents, end-of-text between two of them, as uint16 or uint32.

    Raises UsageError for a text that has no tokens.
    """
    ids = array("I")
    for text in texts():
        if ids and tokenizer.end_of_text is not None:
            ids.append(tokenizer.end_of_text)
        try:
            ids.extend(tokenizer.encode(text))
        except ValueError as error:
            raise UsageError([Problem("tokenizer", None, str(error))]) from error
    return np.frombuffer(ids, dtype=np.uint32).astype(widths(tokenizer.vocab_size))


sources: Registry[Callable[..., Corpus]] = Registry("data", ["context"], DataConfig.common())
"""Data sets. A builder takes a DataContext, and the option's own parameters as keyword-only arguments."""


def widths(vocab_size: int) -> np.dtype[Any]:
    """The narrowest unsigned integers that hold all ids: uint16 or uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
