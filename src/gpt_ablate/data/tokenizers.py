"""Tokenizers: text to token ids and back."""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from gpt_ablate.config.registry import Registry

Texts = Callable[[], Iterator[str]]
"""Gives the documents of the training split, each time that it is called."""


class Tokenizer(ABC):
    """Text to token ids below `vocab_size`, and back."""

    vocab_size: int
    """V."""
    sha256: str
    """Hash of everything that decides which ids a text has."""
    end_of_text: int | None
    """The id that stands between two documents and in none; None: nothing stands there."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; nothing in it is a special token. Raises ValueError for text that has no tokens."""

    @abstractmethod
    def bytes_of(self, token: int) -> bytes:
        """What a token stands for, in UTF-8 (a character may take several tokens)."""

    @abstractmethod
    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """Length in UTF-8 bytes of the text of each token, (V,); 0 for special tokens.

        None if the tokens do not keep the text, so that bytes cannot be counted by token.
        """

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """What `load` makes the same tokenizer from, as JSON."""

    def stream_text(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of tokens as it becomes complete."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in tokens:
            if text := decoder.decode(self.bytes_of(token)):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text


tokenizers: Registry[Callable[..., Tokenizer]] = Registry("tokenizer", ["texts"])
OWN = "own"
"""The option that leaves the tokenizer to the data set."""


Restorer = TypeVar("Restorer", bound=Callable[[dict[str, Any]], Tokenizer])
restorers: dict[str, Callable[[dict[str, Any]], Tokenizer]] = {}
"""What makes a tokenizer from its `content`, by the name in that."""


def restores(name: str) -> Callable[[Restorer], Restorer]:
    """Decorator of what makes a tokenizer from a `content` with this name; it raises ValueError for a damaged one."""

    def add(restorer: Restorer) -> Restorer:
        restorers[name] = restorer
        return restorer

    return add


def hash_of(content: Any) -> str:
    """SHA-256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def utf8(text: str) -> bytes:
    """`text` in UTF-8. Raises ValueError for half of a surrogate pair, which is no character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise ValueError(
            f"{half} at character {error.start} is half of a surrogate pair, and no Unicode character"
        ) from None
