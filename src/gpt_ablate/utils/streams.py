"""Standard output and error that a command outlives: a reader that goes away, a full disk, a stream that is closed."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from rich.console import Console

from gpt_ablate.utils.messages import say

READER_GONE = 128 + 13
"""Exit code of a command whose output nobody reads any more, as a shell reports it for one that SIGPIPE ended."""
_LOG_COLUMNS, _TERMINAL_COLUMNS = 160, 20
"""At least: a log is not cut to the width of a screen, and at a width of 0 a table would vanish."""
_ENCODE_OR_FAIL = ("strict", "surrogateescape", "surrogatepass")


@contextmanager
def outlive(*, needed: bool, at_once: bool = True) -> Iterator[None]:
    """Drop what standard output and error do not take while this lasts, instead of raising OSError.

    `needed`: standard output is what the command is for. Once it is lost, SystemExit is raised: from the write itself,
    or, if not `at_once`, at the end. Its code is READER_GONE, or 1 with a line on standard error where data was lost.
    A character that the encoding lacks is written as \\u2026, and a closed stream becomes the null device.
    """
    lost: list[OSError] = []

    def note(error: OSError) -> None:
        lost.append(error)
        if needed and at_once and len(lost) == 1:
            raise _Lost

    _fill_closed()
    before = sys.stdout, sys.stderr
    output = _wrapped(sys.stdout, note)
    sys.stdout, sys.stderr = output, _wrapped(sys.stderr, lambda _: None)
    try:
        try:
            yield
            output.flush()
        except SystemExit as stop:
            if not (needed and lost) or (stop.code and not isinstance(stop, _Lost)):
                raise
        if needed and lost:
            _end(lost[0])
    finally:
        sys.stdout, sys.stderr = before


def console(live: bool = True, quiet: bool = False) -> Console:
    """Standard output for rich; not `live`: no progress bar, also on a terminal."""
    made = Console(force_terminal=None if live else False, force_jupyter=False, quiet=quiet)
    least = _TERMINAL_COLUMNS if made.is_terminal else _LOG_COLUMNS
    if made.width < least:
        made.width = least
    return made


class _Lost(SystemExit):
    """Standard output, which the command is for, was lost."""

    code = 1


class _Output(io.RawIOBase):
    """A raw stream whose writes do not fail: `lost` is told why what was to be written is dropped."""

    def __init__(self, raw: Any, lost: Callable[[OSError], None]) -> None:
        self._raw, self._lost = raw, lost
        self._terminal = raw.isatty()

    def write(self, data: Any, /) -> int:
        try:
            while (written := self._raw.write(data)) is None:  # it does not block, and its reader is slow
                select.select([], [self], [])
        except OSError as error:
            if error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode):
                error = BrokenPipeError(errno.EPIPE, "the terminal was closed")
            self._lost(error)
            return len(data)
        return int(written)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._terminal  # one that was closed is none any more, but what is shown keeps its form

    def fileno(self) -> int:
        return int(self._raw.fileno())


def _wrapped(stream: TextIO | None, lost: Callable[[OSError], None]) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's, say
        return stream
    raw = _Output(getattr(stream.buffer, "raw", stream.buffer), lost)
    errors = "backslashreplace" if stream.errors in _ENCODE_OR_FAIL else stream.errors
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, stream.encoding, errors, line_buffering=True)


def _fill_closed() -> None:
    """Open the null device in place of a closed standard stream: a record would take its number and get its text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def _end(error: OSError) -> NoReturn:
    if isinstance(error, BrokenPipeError | ConnectionResetError):
        raise SystemExit(READER_GONE) from error
    say(f"standard output: {error.strerror}")
    raise SystemExit(1) from error
