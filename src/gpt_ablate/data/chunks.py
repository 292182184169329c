"""Texts cut into chunks of work, which do not depend on who does the work, and the tokens of a chunk.

Worker processes import this module, so it imports little.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt_ablate.data import tokenizer_files
from gpt_ablate.data.tokenizers import Tokenizer

MANY = 1000
"""From so many documents on, a fraction divides documents and not characters."""
TRAIN, VAL = 0, 1
_CHARACTERS = 1 << 20
"""Of a chunk, about."""
_AROUND = 256
_BORDER = re.compile(r"(?<=\S)\s")
_TRIES = 4


class Piece(NamedTuple):
    """A part of a document."""

    split: int
    """TRAIN or VAL."""
    begins: bool
    """Whether a document begins with it and others of the split stand before."""
    text: str


@dataclass(frozen=True)
class Chunk:
    """Pieces that are encoded together."""

    number: int
    pieces: list[Piece]
    bytes: int
    """Of all texts up to here, in UTF-8."""
    source_sha256: str
    """Of all texts up to here."""


class Division:
    """Documents as (split, text), counted and hashed while they are gone through.

    Without validation texts a fraction divides the training texts. Where they are `MANY` documents, the hash of each
    one decides, so that equal documents are in one split and a document stays where it is when others are added. Where
    they are fewer, all their characters laid end to end are cut in two, as for `data=text`.
    """

    def __init__(self, train: Iterable[str], val: Iterable[str] | None, fraction: float) -> None:
        self._train, self._val, self._fraction = train, val, fraction
        self.total_bytes: int | None = None
        """Where the documents are few; None if it is not known."""
        self._cut: int | None = None
        if val is None:
            few = list(islice(((len(text), len(text.encode())) for text in train), MANY))
            if len(few) < MANY:
                self._cut = int(fraction * sum(length for length, _ in few))
                self.total_bytes = sum(size for _, size in few)
        self._begin()

    def _begin(self) -> None:
        self.documents = [0, 0]
        self.bytes = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the texts so far in UTF-8, a NUL between two."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        self._begin()
        offset = 0
        for split, texts in ((TRAIN, self._train), (VAL, self._val or ())):
            for text in texts:
                content = text.encode()
                self._digest.update(b"\0" + content if self.bytes else content)
                self.bytes += len(content)
                for part in self._parts(split, text, content, offset):
                    self.documents[part[0]] += 1
                    yield part
                offset += len(text)

    def _parts(self, split: int, text: str, content: bytes, offset: int) -> list[tuple[int, str]]:
        if self._val is not None:
            return [(split, text)] if text else []
        if self._cut is None:
            share = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
            return [(TRAIN if share < self._fraction else VAL, text)]
        cut = max(0, self._cut - offset)
        return [(each, part) for each, part in ((TRAIN, text[:cut]), (VAL, text[cut:])) if part]

    def training_texts(self) -> Iterator[str]:
        """The texts of the training split."""
        return (text for split, text in self if split == TRAIN)


def chunks(division: Division, tokenizer: Tokenizer) -> Iterator[Chunk]:
    """All texts as chunks."""
    number = size = 0
    pieces: list[Piece] = []
    begun = [False, False]
    for split, text in division:
        begins = begun[split]
        begun[split] = True
        for part in cut(text, tokenizer):
            pieces.append(Piece(split, begins, part))
            begins = False
            size += len(part)
            if size >= _CHARACTERS:
                yield Chunk(number, pieces, division.bytes, division.sha256)
                number, size, pieces = number + 1, 0, []
    if pieces:
        yield Chunk(number, pieces, division.bytes, division.sha256)


def cut(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """A long text in parts whose tokens are, one after the other, those of the text.

    A part ends before white space, where the tokens around are the same together and apart. A tokenizer that knows no
    such place gets the rest whole.
    """
    start = 0
    while len(text) - start > 2 * _CHARACTERS:
        border = _border(text, start + _CHARACTERS, tokenizer)
        if border is None:
            break
        yield text[start:border]
        start = border
    yield text[start:]


def _border(text: str, after: int, tokenizer: Tokenizer) -> int | None:
    for match in islice(_BORDER.finditer(text, after), _TRIES):
        at = match.start()
        left, right = text[at - _AROUND : at], text[at : at + _AROUND]
        if tokenizer.encode(left) + tokenizer.encode(right) == tokenizer.encode(left + right):
            return at
    return None


def encode(pieces: Sequence[Piece], tokenizer: Tokenizer, dtype: np.dtype[Any]) -> list[npt.NDArray[Any]]:
    """The tokens of both splits. Raises ValueError for text that has no tokens."""
    ids = (array("I"), array("I"))
    for piece in pieces:
        if piece.begins and tokenizer.end_of_text is not None:
            ids[piece.split].append(tokenizer.end_of_text)
        ids[piece.split].extend(tokenizer.encode(piece.text))
    return [np.frombuffer(each, np.uint32).astype(dtype) for each in ids]


_own: list[tuple[Tokenizer, np.dtype[Any]]] = []  # a worker's


def begin_worker(tokenizer: str, dtype: str) -> None:
    """Make this process a worker that encodes with the tokenizer of a file, and ends when its parent does."""
    for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to workers too
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _own.append((tokenizer_files.load(Path(tokenizer)), np.dtype(dtype)))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "called in a worker"
    connection.wait([parent.sentinel])
    os._exit(1)  # a parent that was killed stops no worker


def encode_in_worker(pieces: Sequence[Piece]) -> list[npt.NDArray[Any]]:
    """`encode` with this worker's tokenizer."""
    return encode(pieces, *_own[0])
