"""GPT-2's byte-pair encoding, from the merges in the package: tiktoken without a download."""

from __future__ import annotations

import functools
import hashlib
import re
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken

from gpt_ablate.data.tokenizers import Texts, Tokenizer, restores, tokenizers

VOCAB_SIZE = 50257
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_END_OF_TEXT = "<|endoftext|>"
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # as GPT-2 splits words

_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # what the pattern's \s stands for
_LONG_RUN = re.compile(rf"(?<![{_SPACE}])[{_SPACE}]{{100000,}}(?=[{_SPACE}][^{_SPACE}])")
"""White space that the pattern takes as one word, where it is long: tiktoken overflows on a million of it."""


@functools.cache
def gpt2() -> tiktoken.Encoding:
    """The encoding `tiktoken.get_encoding("gpt2")` gives, with V = 50257.

    Raises ValueError if the merges in the package are not GPT-2's.
    """
    merges = resources.files("gpt_ablate.data").joinpath("assets/vocab.bpe").read_bytes()
    if (found := hashlib.sha256(merges).hexdigest()) != MERGES_SHA256:
        raise ValueError(f"assets/vocab.bpe is damaged: SHA-256 {found}, not {MERGES_SHA256}; install again")
    ranks = _ranks(merges.decode("utf-8"))
    return tiktoken.Encoding(
        "gpt2",
        pat_str=_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={_END_OF_TEXT: len(ranks)},
        explicit_n_vocab=VOCAB_SIZE,
    )


class Gpt2(Tokenizer):
    """GPT-2's byte-pair encoding; "<|endoftext|>" in a text is ordinary text."""

    vocab_size = VOCAB_SIZE
    sha256 = MERGES_SHA256
    end_of_text = VOCAB_SIZE - 1

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, which may be any."""
        ids: list[int] = []
        start = 0
        for run in _LONG_RUN.finditer(text):
            ids += gpt2().encode_ordinary(text[start : run.start()]) + gpt2().encode_ordinary(run[0])
            start = run.end()
        return ids + gpt2().encode_ordinary(text[start:])

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for, in UTF-8."""
        return gpt2().decode_single_token_bytes(token)

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Length in bytes of each token, (V,); 0 for end-of-text."""
        return _byte_lengths()

    def content(self) -> dict[str, Any]:
        """The name, and the hash of the merges, which are in the package."""
        return {"name": "gpt2", "sha256": MERGES_SHA256}


@tokenizers.register("gpt2")
def _of_texts(texts: Texts) -> Tokenizer:
    return Gpt2()


@restores("gpt2")
def _of_content(content: dict[str, Any]) -> Tokenizer:
    return Gpt2()


@functools.cache
def _byte_lengths() -> npt.NDArray[np.int64]:
    ids = range(VOCAB_SIZE - 1)
    return np.array([*(len(gpt2().decode_single_token_bytes(i)) for i in ids), 0])


def _ranks(merges: str) -> dict[bytes, int]:
    """Rank of every token: the 256 bytes in GPT-2's order (printable ones first), then the merges in theirs."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    byte_of = {b: b for b in printable} | {256 + i: b for i, b in enumerate(others)}
    ranks = {bytes([b]): rank for rank, b in enumerate(printable + others)}
    for line in merges.splitlines()[1:]:
        ranks[line.replace(" ", "").translate(byte_of).encode("latin-1")] = len(ranks)
    return ranks
