"""Whether texts that are held out for validation are also trained on."""

from __future__ import annotations

import hashlib

from gpt_ablate.data.documents import Documents, Measures
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.messages import say

_LONG = 200
"""Shorter texts may stand in another by chance."""
_LARGEST = 64 << 20
_WORK = 1 << 32
"""Characters that are searched at most: some two seconds."""
_TOLD = 5


def check(train: Documents, held_out: Documents, sizes: tuple[Measures, Measures], val: object) -> None:
    """Raise UsageError for a held-out text that is trained on too, whatever its white space.

    `val` is the value of data.val.

    Equal texts are found in any data. Where both splits are small enough, so are texts of over 200 characters within a
    text of the other split; where they are not, a message says that they were not looked for.
    """
    inner = _is_affordable(*sizes)
    if not inner:
        say("data.val: the splits are too large to look for a text inside of another; only equal ones are found")
    names: dict[bytes, str] = {}
    others: list[tuple[str, str]] = []
    for document in held_out:
        text = _normalised(document.text)
        names[_digest(text)] = document.name
        others += [(document.name, text)] if inner else []
    told = []
    for document in train:
        text = _normalised(document.text)
        if name := names.get(_digest(text)):
            told.append(f"{name} is the same text as {document.name}")
            continue
        for name, other in others:
            if len(other) > _LONG and other in text:
                told.append(f"{name} is a part of {document.name}")
            elif len(text) > _LONG and text in other:
                told.append(f"{document.name} is a part of {name}")
    if told:
        more = f"; and {len(told) - _TOLD:,} more" if len(told) > _TOLD else ""
        allowed = f"texts that are not in the training split; {'; '.join(told[:_TOLD])}{more}"
        raise UsageError([Problem("data.val", val, allowed)])


def _is_affordable(train: Measures, held_out: Measures) -> bool:
    searched = held_out.documents * train.characters + train.documents * held_out.characters
    return train.characters + held_out.characters <= _LARGEST and searched <= _WORK


def _normalised(text: str) -> str:
    return " ".join(text.split())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
