"""Tokenizers without merges: the bytes of UTF-8, and the characters of the training split."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_ablate.data.tokenizers import Texts, Tokenizer, hash_of, restores, tokenizers, utf8
from gpt_ablate.utils.errors import Problem, UsageError

_NUL = "\0"
_REPLACEMENT = "\ufffd"
_CODES = 0x110000
_SURROGATES = slice(0xD800, 0xE000)
_PART = 1 << 20
_SHOWN = 10


class Bytes(Tokenizer):
    """The 256 bytes of UTF-8. NUL is end-of-text: a text file has none."""

    vocab_size = 256
    sha256 = hash_of({"name": "bytes"})
    end_of_text = 0

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`. Raises ValueError for half of a surrogate pair."""
        return list(utf8(text))

    def bytes_of(self, token: int) -> bytes:
        """The byte itself."""
        return bytes([token])

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """1 for each byte but NUL, (256,)."""
        lengths = np.ones(self.vocab_size, dtype=np.int64)
        lengths[0] = 0
        return lengths

    def content(self) -> dict[str, Any]:
        """The name alone."""
        return {"name": "bytes"}


class Chars(Tokenizer):
    """Given characters in the order of their code points; NUL as end-of-text and an unknown token at will."""

    def __init__(self, characters: str, *, end_of_text: bool, unknown: bool) -> None:
        """Raises ValueError for characters that are not sorted, or not each once, or lack the end-of-text."""
        if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
            raise ValueError("the characters must be sorted, each once")
        self._characters, self._unknown = characters, unknown
        self.vocab_size = len(characters) + unknown
        self.end_of_text = characters.index(_NUL) if end_of_text else None
        self.sha256 = hash_of(self.content())
        self._ids = np.full(_CODES, len(characters) if unknown else -1, dtype=np.int32)
        self._ids[_codes(characters)] = np.arange(len(characters))

    def encode(self, text: str) -> list[int]:
        """The number of each character. Raises ValueError for characters that have none."""
        ids: list[int] = []
        for start in range(0, len(text), _PART):  # a part at a time: codes of 4 bytes need 4 times the text
            found = self._ids[_codes(text[start : start + _PART])]
            if not self._unknown and (found < 0).any():
                raise ValueError(self._told(set(text) - set(self._characters)))
            ids += found.tolist()
        return ids

    def _told(self, others: set[str]) -> str:
        shown = ", ".join(
            f"{char!r} (U+{ord(char):04X} {unicodedata.name(char, 'without a name')})"
            for char in sorted(others)[:_SHOWN]
        )
        more = f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
        return (
            f"{len(others):,} different characters are not in the training split: {shown}{more}; "
            "tokenizer.unknown=true encodes them as one unknown token"
        )

    def bytes_of(self, token: int) -> bytes:
        """The character in UTF-8; U+FFFD for the unknown token."""
        return (self._characters + _REPLACEMENT * self._unknown)[token].encode()

    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """Bytes of each character in UTF-8, (V,); 0 for end-of-text. None with an unknown token, which keeps none."""
        if self._unknown:
            return None
        lengths = np.array([len(char.encode()) for char in self._characters], dtype=np.int64)
        if self.end_of_text is not None:
            lengths[self.end_of_text] = 0
        return lengths

    def content(self) -> dict[str, Any]:
        """The characters, and what stands beside them."""
        return {
            "name": "chars",
            "characters": self._characters,
            "end_of_text": self.end_of_text is not None,
            "unknown": self._unknown,
        }


def _codes(text: str) -> npt.NDArray[np.uint32]:
    """Code point of each character; half of a surrogate pair has one too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


@tokenizers.register("bytes")
def _bytes(texts: Texts) -> Tokenizer:
    return Bytes()


@tokenizers.register("chars")
def _chars(texts: Texts, *, unknown: bool = False) -> Tokenizer:
    seen = np.zeros(_CODES, dtype=bool)
    n_documents = 0
    for text in texts():
        n_documents += 1
        for start in range(0, len(text), _PART):
            seen[_codes(text[start : start + _PART])] = True
    if seen[_SURROGATES].any():
        raise UsageError([Problem("tokenizer.name", "chars", "a training split without halves of surrogate pairs")])
    seen[0] |= n_documents > 1
    return Chars("".join(map(chr, np.flatnonzero(seen))), end_of_text=n_documents > 1, unknown=unknown)


@restores("bytes")
def _same_bytes(content: dict[str, Any]) -> Tokenizer:
    return Bytes()


@restores("chars")
def _same_characters(content: dict[str, Any]) -> Tokenizer:
    return Chars(content["characters"], end_of_text=content["end_of_text"], unknown=content["unknown"])
