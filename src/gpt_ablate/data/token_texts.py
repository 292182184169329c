"""What the tokens of any vocabulary stand for, found by trying."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set

_PROBES = (
    "Hello world, it's 12,345.60 (x) isn't it?",
    " two  spaces,\n\n\ta tab and  \n   the End of lines \n",
    "naïve café in Zürich, Ωμέγα, Привет, İstanbul",
    "日本語 の 中文字, 한국어",
    "🙂 👩‍🚀🇪🇺 ok",
    "½ ﬁ Ⅷ ™ “quoted” — x²",
)
_PRINTABLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def _byte_level(token: str) -> bytes:
    """A token of GPT-2's kind: each character stands for a byte."""
    if any(char not in _BYTE_OF for char in token):
        return token.encode()
    return bytes(_BYTE_OF[char] for char in token)


def _sentencepiece(token: str) -> bytes:
    """A token of SentencePiece's kind: U+2581 stands for a space, <0x0A> for a byte."""
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("\u2581", " ").encode()


def pieces_of(
    vocabulary: Mapping[int, str],
    added: Set[int],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> tuple[dict[int, bytes], bool]:
    """The bytes of each token, and whether those of a text's tokens are always the text.

    The reading of tokens is the one that gives texts back; else the one that gives what the decoder does; else what
    the decoder makes of each token alone. `added` tokens are taken as they stand. A space that the tokenizer puts
    before a text may be there too.
    """
    tokens = {text: ids for text in _PROBES if (ids := _encoded(text, encode))}
    goals = [({text: text for text in tokens}, True), ({text: decode(ids) for text, ids in tokens.items()}, False)]
    for goal, keeps in goals:
        for read in (_byte_level, _sentencepiece, str.encode):
            pieces = {id: token.encode() if id in added else read(token) for id, token in vocabulary.items()}
            found = {text: b"".join(pieces[id] for id in ids) for text, ids in tokens.items()}
            if all(found[text] in (it.encode(), b" " + it.encode()) for text, it in goal.items()) and tokens:
                return pieces, keeps and len(tokens) == len(_PROBES)
    before = _encoded("a", encode) or [min(vocabulary)]  # decoders leave out a space at the start of a text
    start = decode(before)
    return {id: decode([*before, id]).removeprefix(start).encode() for id in vocabulary}, False


def _encoded(text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Token ids; none for a text that cannot be encoded."""
    try:
        return encode(text)
    except ValueError:
        return []
