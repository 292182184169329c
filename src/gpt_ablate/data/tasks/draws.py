"""Random numbers of tasks: the same in every version of numpy, which promises this of the raw stream alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Draws:
    """The counter-based generator Philox4x64 at the start of one stream."""

    def __init__(self, seed: int) -> None:
        """`seed` as `random_streams.stream` gives it."""
        self._bits = np.random.Philox(key=seed)

    def raw(self, *shape: int) -> npt.NDArray[np.uint64]:
        """Uniform 64-bit numbers."""
        drawn: Any = self._bits.random_raw(math.prod(shape))
        return np.asarray(drawn, dtype=np.uint64).reshape(shape)

    def uniform(self, *shape: int) -> Floats:
        """Uniform in [0, 1)."""
        return (self.raw(*shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, high: int, *shape: int) -> Ints:
        """Uniform in 0, ..., high - 1."""
        return (self.uniform(*shape) * high).astype(np.int64)

    def distinct(self, high: int, rows: int, n: int) -> Ints:
        """For each row n different numbers below `high`, in random order, (rows, n)."""
        chosen = np.empty((rows, n), dtype=np.int64)
        for i in range(n):  # Floyd's algorithm: takes no memory for the numbers that are not chosen
            top = high - n + i
            drawn = self.integers(top + 1, rows)
            taken = (chosen[:, :i] == drawn[:, None]).any(axis=1)
            chosen[:, i] = np.where(taken, top, drawn)
        return np.take_along_axis(chosen, self.uniform(rows, n).argsort(axis=1), axis=1)

    def weighted(self, weights: Floats, rows: int, n: int) -> Ints:
        """For each row n different indices, drawn one after another in proportion to their weights, (rows, n)."""
        times = -np.log1p(-self.uniform(rows, len(weights))) / weights  # the first of exponential clocks
        return times.argsort(axis=1)[:, :n]
