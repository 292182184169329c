"""How a command refuses: one line for each problem, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .registry import UsageError


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a UsageError into its problems on standard error and exit code 2."""
    try:
        yield
    except UsageError as error:
        for problem in error.problems:
            print(f"gpt_ablate: {problem}", file=sys.stderr)
        sys.exit(2)
