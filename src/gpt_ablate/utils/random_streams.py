"""Named random streams: every draw is a function of (root, name) and of nothing else.

The root is the run's seed, for a run with an arm both (`Config.root`).

Names in use: `init/<parameter>`, `data/<epoch>`, `dropout/<step>`, `sampling/<step>`, for the new examples of a task
`data/first_block`; with `data.seed` as root `data/<task>/<split>/<block>` and what else begins with `data/<task>/`.
A stream per epoch or step, instead of one that runs on, leaves no generator state to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream(root: int | str, name: str) -> int:
    """The 63-bit seed of one stream; stable across processes, machines and versions."""
    digest = hashlib.sha256(f"{root}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(root: int | str, name: str) -> torch.Generator:
    """A CPU generator at the start of the stream (the CPU's, so that every device starts alike)."""
    return torch.Generator().manual_seed(stream(root, name))


@contextmanager
def seeded(root: int | str, name: str) -> Iterator[None]:
    """Have torch's own draws on the CPU come from the stream; its state is put back at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(root, name))
        yield
