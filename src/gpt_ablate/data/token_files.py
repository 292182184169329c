"""nanoGPT's `train.bin` and `val.bin`: tokens as bare integers, so what they are must be told from their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gpt_ablate.data.corpus import widths
from gpt_ablate.data.gpt2_encoding import VOCAB_SIZE, Gpt2, gpt2
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.file_formats import format_of
from gpt_ablate.utils.files import expanded, opened_file
from gpt_ablate.utils.messages import say

Tokens: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

FILES = ("train.bin", "val.bin")
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_NAMES = {
    "<u2": "uint16 tokens",
    "<u4": "uint32 tokens",
    "<i8": "int64 tokens",
    ">u2": "big-endian uint16 tokens",
    ">u4": "big-endian uint32 tokens",
    ">i8": "big-endian int64 tokens",
}
_PART = 1 << 20
_BLOCK, _BLOCKS = 4096, 64
_ENOUGH = 16
_UPPER = 3
"""The most that the upper half of a 32-bit token is in any vocabulary in use."""


@dataclass(frozen=True)
class _Expected:
    """What the tokens are said to be."""

    width: np.dtype[Any]
    is_chosen: bool
    """Whether the user named the width."""
    vocab_size: int
    of_gpt2: bool

    def fits(self, sample: bytes, dtype: str) -> bool:
        """Whether all tokens are in the vocabulary if they are read so."""
        return bool((_as(sample, dtype) < self.vocab_size).all())

    def layout(self, sample: bytes) -> str | None:
        """How the tokens of a sample lie, where that is not as they are said to; None where nothing tells."""
        seen = _layout(sample)
        if not self.of_gpt2:  # any order of tokens may be meant
            return seen if seen and not self.is_chosen and self.fits(sample, seen) else None
        if _few_kinds(sample) and _is_text_of_gpt2(_as(sample, self.width.str)):
            seen = None  # such as "Oh! Oh! Oh!", where every second token is 0 in truth
        if seen is None and not self.fits(sample, self.width.str):
            seen = _layout(sample, _UPPER) or next((each for each in ("<u2", ">u2") if self.fits(sample, each)), None)
        return seen


def read(
    folder: str | None, dtype: str | None, vocab_size: int = VOCAB_SIZE, *, of_gpt2: bool = True
) -> tuple[Tokens, Tokens, str]:
    """Training and validation tokens, memory-mapped, and the SHA-256 of both in the narrowest width for the vocabulary.

    A sample of each file tells first whether it is what `dtype` (None: that width) says; then all of it is read once,
    to check and hash it. Raises UsageError for a file that is something else or holds tokens out of the vocabulary.
    `of_gpt2`: whether they should be text in GPT-2's tokens; a message tells if they are not.
    """
    narrowest = widths(vocab_size)
    width = DTYPES[dtype] if dtype else narrowest
    expected = _Expected(width, dtype is not None, vocab_size, of_gpt2)
    paths = [expanded("data.dir", folder or ".") / file for file in FILES]
    samples, problems = [], []
    for path in paths:
        try:
            samples.append(_sample(path))
        except OSError as error:
            problems.append(Problem("data.dir", str(path), f"a file that can be read ({error.strerror})"))
    if problems:
        raise UsageError(problems)
    for path, sample in zip(paths, samples, strict=True):
        if told := _refusal(sample, path.stat().st_size, expected, samples):
            problems.append(Problem("data.dir", str(path), told))
    if problems:
        raise UsageError(problems)
    splits: list[Tokens] = [np.memmap(path, dtype=width, mode="r") for path in paths]
    digest = hashlib.sha256()
    for path, tokens in zip(paths, splits, strict=True):
        highest = 0
        for start in range(0, len(tokens), _PART):
            part = tokens[start : start + _PART]
            highest = max(highest, int(part.max()))
            digest.update(part.astype(narrowest, copy=False).tobytes())
        if highest >= vocab_size:
            raise UsageError([Problem("data.dir", str(path), f"tokens below {vocab_size}, found {highest}")])
    for path, sample in zip(paths, samples, strict=True):
        if of_gpt2 and not _is_text_of_gpt2(_as(sample, width.str)):
            say(
                f"{path}: its tokens are not those that GPT-2's tokenizer gives for their text; if another one made "
                "them, prompts, samples and bytes per token are wrong"
            )
    return splits[0], splits[1], digest.hexdigest()


def _sample(path: Path) -> bytes:
    """The file, or blocks of it from its start to its end, each of which begins at a multiple of 8 bytes."""
    with opened_file(path) as file:
        size = path.stat().st_size
        if size <= _BLOCK * _BLOCKS:
            return file.read(size)
        blocks = []
        for i in range(_BLOCKS):
            file.seek((size - _BLOCK) * i // (_BLOCKS - 1) // 8 * 8)
            blocks.append(file.read(_BLOCK))
        return b"".join(blocks)


def _as(sample: bytes, dtype: str) -> npt.NDArray[Any]:
    """The integers in a sample, less those of its last bytes that make no 8."""
    return np.frombuffer(sample[: len(sample) // 8 * 8], dtype)


def _refusal(sample: bytes, size: int, expected: _Expected, samples: list[bytes]) -> str | None:
    """What would be right instead of a file that is no tokens of this width, and what it looks like; None if it may be.

    `samples` are those of both files.
    """
    width = expected.width
    asked = _NAMES[width.str]
    if what := format_of(sample):
        return f"{asked}; this is {what}"
    if _is_text(sample):
        return f"{asked}; this looks like text (data=text data.path=FILE takes it)"
    seen = expected.layout(sample)
    if seen is not None and seen != width.str:
        return f"{asked}; these look like {_NAMES[seen]}{_remedy(seen, expected, samples)}"
    if size == 0 or size % width.itemsize:
        return f"{asked}, not {size} bytes: cut off, or something else"
    return None


def _remedy(seen: str, expected: _Expected, samples: list[bytes]) -> str:
    """What to do about tokens that lie otherwise than was asked for."""
    if not any(expected.fits(sample, seen) for sample in samples):
        return f" of another vocabulary than GPT-2's (tokens below {VOCAB_SIZE})"
    named = next((name for name, dtype in DTYPES.items() if dtype.str == seen), None)
    if named is None:
        kind = widths(expected.vocab_size)
        return f"; numpy.fromfile(OLD, '{seen}').astype('{kind.str}').tofile(NEW) writes them as {kind.name}"
    if all(expected.fits(sample, seen) and _layout(sample) in (seen, None) for sample in samples):
        return f", which data.dtype={named} reads"
    return "; write both files in one width"


def _layout(sample: bytes, upper: int = 0) -> str | None:
    """How the tokens lie in a sample of a file's bytes, as NumPy names it; None where nothing tells.

    The upper 16-bit words of wider integers are at most `upper`, at the same places all through the file (a header
    apart). In honest uint16 tokens, however many are 0, the others stand at odd and at even places: 16 of them at even
    ones alone have a chance of 2**-15, and so few of them only where nearly all tokens are 0.
    """
    words = _as(sample, "<u2").reshape(-1, 4)
    for order, quads in (("<", words), (">", words.byteswap()[:, ::-1])):
        large = (quads > upper).sum(0)
        header = large.sum() // 100
        if large.sum() >= _ENOUGH and large[1:].sum() <= header:
            return f"{order}i8"
        if large.sum() >= _ENOUGH and large[1::2].sum() <= header:
            return f"{order}u4"
    if np.count_nonzero(words) >= _ENOUGH and not (words & 0xFF).any():
        return ">u2"  # all below 256; as little-endian, all would be multiples of 256
    return None


def _few_kinds(sample: bytes) -> bool:
    """Whether so few different words occur in a sample that their places tell little."""
    return len(np.unique(_as(sample, "<u2"))) <= _ENOUGH


def _is_text(sample: bytes) -> bool:
    """Whether bytes are UTF-8 without control characters, of which the upper bytes of tokens are full."""
    if _few_kinds(sample) or any(byte < 32 and byte not in b"\t\n\f\r" for byte in set(sample)):
        return False
    blocks = (sample[start : start + _BLOCK] for start in range(0, len(sample), _BLOCK))
    inner = (block.decode("utf-8", errors="replace")[3:-3] for block in blocks)  # ends may lie inside of a character
    return not any("\ufffd" in text for text in inner)


def _is_text_of_gpt2(tokens: npt.NDArray[Any]) -> bool:
    """Whether in most places they are the tokens that GPT-2's tokenizer gives for the text that they stand for."""
    pieces = [tokens[start : start + 32].tolist() for start in range(0, len(tokens) - 31, max(32, len(tokens) // 64))]
    kept = []
    for piece in pieces:
        if VOCAB_SIZE - 1 not in piece:  # end-of-text stands in no text
            inner, again = piece[8:24], Gpt2().encode(gpt2().decode(piece))
            kept.append(any(again[i : i + 16] == inner for i in range(len(again))))
    return 2 * sum(kept) >= len(kept)
