"""The signals that ask a process to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
r"""By a person, a system or a scheduler. SIGQUIT (Ctrl-\) is not among them: it ends a process at once."""

_received: list[int] = []
_noting = 0  # blocks that come to an end of their own
_listening = False


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop; `number` is the signal."""

    def __init__(self, told: str, number: int) -> None:
        super().__init__(told, number)
        self.number = number

    def __str__(self) -> str:
        return str(self.args[0])


@contextmanager
def noted() -> Iterator[list[int]]:
    """A list that SIGNALS append to, and do nothing else, so that the block can save its state and end by itself.

    A signal that this process was started to ignore (by nohup) stays ignored. Outside the main thread, signals are the
    caller's.
    """
    global _noting
    with _handlers() as received:
        _noting += 1
        try:
            yield received
        finally:
            _noting -= 1


@contextmanager
def raised() -> Iterator[None]:
    """Have the first of SIGNALS raise Interrupted, unless it is `noted`; later ones do nothing."""
    with _handlers():
        yield


@contextmanager
def _handlers() -> Iterator[list[int]]:
    """What is received while the handlers are ours; for a thread that runs while they are not, nothing ever."""
    global _listening
    if _listening or threading.current_thread() is not threading.main_thread():
        yield _received if _listening else []
        return
    _received.clear()
    _listening = True
    not_ours = (signal.SIG_IGN, None)  # ignored, or handled by other than Python
    before = {number: signal.signal(number, _note) for number in SIGNALS if signal.getsignal(number) not in not_ours}
    try:
        yield _received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _listening = False


def _note(number: int, _: object) -> None:
    _received.append(number)
    if not _noting and len(_received) == 1:
        raise Interrupted("stopped", number)
