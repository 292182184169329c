"""What a user asked for and cannot have: one problem, and the error that holds all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LONGEST = 500
"""Characters of a value that a message shows."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with what the user asked for: where, what, and what would be right."""

    key: str
    value: Any
    allowed: str
    closest: str | None = None

    def __str__(self) -> str:
        hint = f" Did you mean {self.closest!r}?" if self.closest else ""
        value = repr(self.value)
        if len(value) > _LONGEST:
            value = f"{value[:_LONGEST]}... ({len(value):,} characters)"
        return f"{self.key} = {value}: {self.allowed}.{hint}"


class UsageError(ValueError):
    """What the user asked for cannot be done; holds every problem found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list({str(problem): problem for problem in problems}.values())
        super().__init__("\n".join(map(str, self.problems)))


def closest(word: object, choices: Iterable[str]) -> str | None:
    """The choice nearest in spelling to `word`, if any is near."""
    near = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.5)
    return near[0] if near else None
