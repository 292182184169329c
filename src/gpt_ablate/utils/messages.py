"""How a command refuses: one line for each problem, exit code 2, no traceback; 1 where a place cannot be written."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import lies_with_the_place

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a UsageError into its problems on standard error and exit code 2; a full disk and the like into 1."""
    try:
        _working_directory()
        yield
    except UsageError as error:
        refuse(error)
        sys.exit(2)
    except OSError as error:
        if not lies_with_the_place(error):
            raise
        say(place_told(error))
        sys.exit(1)


def _working_directory() -> None:
    """Raise UsageError if it was removed: relative paths mean nothing, and libraries ask for it."""
    try:
        os.getcwd()
    except OSError as error:
        where = os.environ.get("PWD", "")
        raise UsageError([Problem("working directory", where, f"a folder that is there ({error.strerror})")]) from error


def refuse(error: UsageError) -> None:
    """Print every problem on standard error."""
    for problem in error.problems:
        say(str(problem))


def say(message: str) -> None:
    """One message of the command's on standard error."""
    print(f"gpt_ablate: {visible(message)}", file=sys.stderr)


def visible(text: str) -> str:
    """`text` with control characters written as \\u001b, in JSON too: a stranger's names may command a terminal.

    So are those that turn the direction of writing, by which a page shows another text than it holds (Unicode TR 36).
    """
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def place_told(error: OSError) -> str:
    """What the system said of which file."""
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror or str(error)
