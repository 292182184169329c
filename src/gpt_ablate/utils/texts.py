"""Text files in UTF-8, as any system writes them; what is no such text, by name."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterable

from gpt_ablate.utils.file_formats import format_of

MARK = "\ufeff"
"""The byte order mark, which some editors write at the start of a text."""


def universal(text: str) -> str:
    r"""`text` without a byte order mark at its start, and every line end (\r\n, \r) as \n, as in Python's text mode."""
    return text.removeprefix(MARK).replace("\r\n", "\n").replace("\r", "\n")


def universal_bytes(content: bytes) -> bytes:
    """`universal` for text that is still in UTF-8; the very bytes where there is nothing to change."""
    return content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def joined(text: str) -> str:
    """`text` with each paragraph on one line; an empty line, or one of white space alone, ends a paragraph."""
    groups = itertools.groupby(text.split("\n"), key=lambda line: bool(line.strip()))
    return "\n".join((" " if has_words else "\n").join(_lines(group, has_words)) for has_words, group in groups)


def _lines(group: Iterable[str], has_words: bool) -> Iterable[str]:
    return (line.strip() for line in group) if has_words else group


def decode(content: bytes) -> str:
    """The text of a file in UTF-8, as `universal` has it.

    Raises ValueError, saying what would be right, for another encoding or format, a NUL character, and a byte order
    mark that is not at the start.
    """
    if what := format_of(content) or _encoding_without_mark(content):
        raise ValueError(f"text in UTF-8; this is {what}")
    try:
        text = universal_bytes(content).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"text in UTF-8 ({_first_bad(content)})") from None
    if "\0" in text:
        raise ValueError(
            f"a text without NUL characters (there is one at character {text.index(chr(0))}; is it binary?)"
        )
    if MARK in text:
        line = text.count("\n", 0, text.index(MARK)) + 1
        told = f"{text.count(MARK)} more, the first on line {line}; were files with marks joined? Take out the marks"
        raise ValueError(f"a text without a byte order mark (U+FEFF) after its start ({told})")
    return text


def _first_bad(content: bytes) -> str:
    """Where `content` stops being UTF-8, and why."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = universal_bytes(content[: error.start]).count(b"\n") + 1
        reason = f"byte {error.start}, 0x{content[error.start]:02x} on line {line}, is not: {error.reason}"
        return f"{reason}; if it is Windows-1252 or Latin-1: iconv -f CP1252 -t UTF-8 OLD > NEW converts it"
    raise AssertionError("called for what is no UTF-8")


def _encoding_without_mark(content: bytes) -> str | None:
    """UTF-32 or UTF-16 without a mark, told by its NUL bytes; None for what is neither, or cannot be told."""
    if b"\0" not in content:
        return None
    for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        width = int(name[4:6]) // 8
        high = content[width - 1 :: width] if name.endswith("LE") else content[::width]
        if len(content) % width or high.count(0) < _least(content, len(high)):
            continue
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return f"text in {name} (iconv -f {name} -t UTF-8 OLD > NEW converts it)"
    return None


def _least(content: bytes, characters: int) -> float:
    """How many of so many high bytes must be 0: line ends alone may give 1 in 500, if it is no UTF-8 anyway."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return characters / 500
    return characters / 2
