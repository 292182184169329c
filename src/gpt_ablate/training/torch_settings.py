"""What a run changes about its process while it lasts: torch's algorithms, threads and memory."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from gpt_ablate.utils.signals import SIGNALS


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for algorithms that give the same bits every time."""
    before = torch.get_deterministic_debug_mode()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports torch's compiler: 2 s
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
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
def tf32(wanted: bool) -> Iterator[None]:
    """Let CUDA's products of float32 round their factors to TensorFloat-32, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_MALLOC_USUAL = {_M_TRIM_THRESHOLD: 128 * 1024, _M_MMAP_MAX: 65536}


@contextmanager
def memory_kept() -> Iterator[None]:
    """Have glibc keep what one step frees for the next, since the system clears every page it gives; elsewhere nothing.

    benchmarks/README.md says what it gives.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    libc.mallopt(_M_MMAP_MAX, 0)
    try:
        yield
    finally:
        for option, value in _MALLOC_USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


@contextmanager
def threads_fail_quietly() -> Iterator[None]:
    """Leave it to TensorBoard's writer to raise again here what its thread could not write; said once is enough."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before


_settings: Any = torch.utils.deterministic
_KEPT: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda it: torch.set_default_device(None if it == torch.device("cpu") else it)),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch._C._set_grad_enabled),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (lambda: _settings.fill_uninitialized_memory, lambda it: setattr(_settings, "fill_uninitialized_memory", it)),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    (lambda: torch.backends.cudnn.benchmark, lambda it: setattr(torch.backends.cudnn, "benchmark", it)),
    (lambda: torch.backends.cudnn.allow_tf32, lambda it: setattr(torch.backends.cudnn, "allow_tf32", it)),
    *(
        (lambda kind=kind: torch.is_autocast_enabled(kind), lambda it, kind=kind: torch.set_autocast_enabled(kind, it))
        for kind in ("cpu", "cuda")
    ),
    (os.getcwd, os.chdir),
    (random.getstate, random.setstate),
)
"""How to read and to set what a run's numbers and its end depend on."""


@contextmanager
def process_kept() -> Iterator[None]:
    """Put back, however the block ends, random states, torch's settings, the working directory and signal handlers."""
    before = [read() for read, _ in _KEPT]
    numpy_state = np.random.get_state()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with torch.random.fork_rng(enabled=True):
            yield
    finally:
        for (read, write), value in zip(_KEPT, before, strict=True):
            if read() != value:
                write(value)
        np.random.set_state(numpy_state)
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:  # None: set by other than Python
                signal.signal(number, handler)
