"""What a run changes about its process while it lasts: torch's algorithms and threads, and what signals do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for algorithms that give the same bits every time."""
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fill


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch compute on so many CPU threads; None: on as many as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_fail_quietly() -> Iterator[None]:
    """Leave it to TensorBoard's writer to raise again here what its thread could not write; said once is enough."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to; a second signal acts as it does without us."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _: object) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, note)
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not the main thread: there, signals are the caller's
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
