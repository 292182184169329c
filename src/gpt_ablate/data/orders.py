"""Orders of windows: a permutation of each epoch, or draws with replacement."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt_ablate.utils import random_streams

_LISTED = 1 << 24
"""Up to so many numbers a permutation is a list, as it was in older versions."""
_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Computed(ABC):
    """n numbers below n, each computed from its position when it is asked for; memory does not grow with n."""

    def __init__(self, n: int, root: int | str, stream: str) -> None:
        self.n, self.key = n, np.uint64(random_streams.stream(root, stream))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, positions: slice) -> Tensor:
        """The numbers at these positions, int64."""
        at = np.arange(*positions.indices(self.n), dtype=np.int64)
        return torch.from_numpy(self._at(at.view(np.uint64)).astype(np.int64))

    @abstractmethod
    def _at(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The numbers at these positions."""


class Permutation(Computed):
    """Each of n numbers once: a Feistel network on a rectangle of at least n cells.

    A number is a row and a column. Each round adds a hash of the one to the other, which can be undone, so no two
    numbers become the same. What leaves the n numbers walks on until it comes back (Black and Rogaway 2002).
    """

    def _at(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        found = self._permuted(positions)
        outside = np.flatnonzero(found >= self.n)
        while len(outside):
            found[outside] = self._permuted(found[outside])
            outside = outside[found[outside] >= self.n]
        return found

    def _permuted(self, cells: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        columns = math.isqrt(self.n - 1) + 1
        rows = -(-self.n // columns)
        row, column = np.divmod(cells, np.uint64(columns))
        for i in range(0, _ROUNDS, 2):
            row = (row + _hashed(column, self.key, i) % np.uint64(rows)) % np.uint64(rows)
            column = (column + _hashed(row, self.key, i + 1) % np.uint64(columns)) % np.uint64(columns)
        return row * np.uint64(columns) + column


class Draws(Computed):
    """Independent draws below n; the probabilities of two numbers differ by less than n / 2**64 of either."""

    def _at(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return _hashed(positions, self.key, 0) % np.uint64(self.n)


def permutation(n: int, root: int | str, stream: str) -> Tensor | Permutation:
    """Each of n numbers once."""
    if n <= _LISTED:
        return torch.randperm(n, generator=random_streams.generator(root, stream))
    return Permutation(n, root, stream)


def with_replacement(n: int, root: int | str, stream: str) -> Draws:
    """n draws from n numbers; the draw at a position is a function of (root, stream, position)."""
    return Draws(n, root, stream)


def _hashed(values: npt.NDArray[np.uint64], key: Any, index: int) -> npt.NDArray[np.uint64]:
    """64 random bits of each value: SplitMix64 (Steele and others 2014), started at a hash of key and index."""
    with np.errstate(over="ignore"):  # sums and products are modulo 2**64
        return _mixed((values + np.uint64(1)) * _GOLDEN + _mixed(key + np.uint64(index) * _GOLDEN))


def _mixed(bits: Any) -> Any:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
