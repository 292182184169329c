"""Token ids without text, for data that has a vocabulary of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from gpt_ablate.data.tokenizers import OWN, Texts, Tokenizer, hash_of, restores, tokenizers
from gpt_ablate.utils.errors import Problem, UsageError

_NUMBER = re.compile("[0-9]+")
_LONGEST = 40


class Ids(Tokenizer):
    """Numbers below `vocab_size`; their text is the numbers with spaces between them."""

    end_of_text = None

    def __init__(self, vocab_size: int, sha256: str = "") -> None:
        """`sha256` is that of what gave the ids their meaning, if the data set knows it."""
        if type(vocab_size) is not int or vocab_size < 1:
            raise ValueError(f"a vocabulary has one id or more, not {vocab_size!r}")
        self.vocab_size, self._given = vocab_size, sha256
        self.sha256 = sha256 or hash_of(self.content())

    def encode(self, text: str) -> list[int]:
        """The numbers in `text`. Raises ValueError for anything else, and for a number that is no id."""
        ids = []
        for word in text.split():
            if not _NUMBER.fullmatch(word) or len(word) > _LONGEST or int(word) >= self.vocab_size:
                shown = repr(word if len(word) <= _LONGEST else word[:_LONGEST] + "...")
                raise ValueError(
                    f"{shown} is no token id: this vocabulary has no text, only the numbers from 0 to "
                    f"{self.vocab_size - 1}, with spaces between them"
                )
            ids.append(int(word))
        return ids

    def bytes_of(self, token: int) -> bytes:
        """The number."""
        return str(token).encode()

    def byte_lengths(self) -> None:
        """None: ids stand for no text."""
        return

    def content(self) -> dict[str, Any]:
        """The size, and the hash that was given."""
        return {"name": "ids", "vocab_size": self.vocab_size, "sha256": self._given}

    def stream_text(self, tokens: Iterable[int]) -> Iterator[str]:
        """The numbers, a space before each but the first."""
        for place, token in enumerate(tokens):
            yield f" {token}" if place else str(token)


@tokenizers.register(OWN)
def _own(texts: Texts) -> Tokenizer:
    others = ", ".join(sorted(set(tokenizers.builders) - {OWN}))
    told = f"one of {others}: this data set is text, and has no tokenizer of its own"
    raise UsageError([Problem("tokenizer.name", OWN, told)])


@restores("ids")
def _same(content: dict[str, Any]) -> Tokenizer:
    return Ids(content["vocab_size"], content["sha256"])
