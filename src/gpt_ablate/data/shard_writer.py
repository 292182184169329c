"""Writing the tokens of a split into shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gpt_ablate.data.corpus import entropy
from gpt_ablate.data.shards import Shard, SplitIndex, names
from gpt_ablate.data.tokenizers import Tokenizer
from gpt_ablate.utils.errors import Problem, UsageError

_PART = 1 << 22


class ShardWriter:
    """Writes tokens, in order, into shards of `shard_tokens`; each appears when it is whole and on disk."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.shards: list[Shard] = []
        self._lengths = tokenizer.byte_lengths()
        self._counts = np.zeros(tokenizer.vocab_size, np.int64)
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._begin()

    def _begin(self) -> None:
        self._filled = self._bytes = 0
        self._own_digest = hashlib.sha256()

    @property
    def tokens(self) -> int:
        """How many tokens have been written."""
        return sum(shard.tokens for shard in self.shards) + self._filled

    def restore(self, shards: Sequence[Shard]) -> None:
        """Count whole shards that an earlier process wrote. Raises UsageError for one that has changed since."""
        for shard, name in zip(shards, names(self.split, len(shards)), strict=True):
            path = self.folder / name
            try:
                content = np.memmap(path, self.dtype, "r")
                for start in range(0, len(content), _PART):
                    self._count(content[start : start + _PART])
            except (OSError, ValueError) as error:
                raise UsageError([_damaged(path, str(error))]) from error
            if self._own_digest.hexdigest() != shard.sha256:
                raise UsageError([_damaged(path, "its content has changed")])
            self.shards.append(shard)
            self._begin()

    def write(self, ids: npt.NDArray[Any]) -> Iterator[int]:
        """Write tokens; each time that a shard has become whole, how many of `ids` were used up to its end."""
        used = 0
        while used < len(ids):
            part = ids[used : used + self.shard_tokens - self._filled]
            if self._file is None:
                self._file = self._beside.open("wb")
            self._file.write(part.tobytes())
            self._count(part)
            used += len(part)
            if self._filled == self.shard_tokens:
                self._finish()
                yield used

    def close(self, documents: int) -> SplitIndex:
        """Write the last shard, which may be shorter; what the index says of the split."""
        if self._filled:
            self._finish()
        size = None if self._lengths is None else int(self._counts @ self._lengths)
        return SplitIndex(
            documents=documents,
            tokens=self.tokens,
            bytes=size,
            unigram_entropy=entropy(self._counts),
            sha256=self._digest.hexdigest(),
            shards=self.shards,
        )

    def abandon(self) -> None:
        """Remove a shard that is not whole."""
        if self._file is not None:
            self._file.close()
            self._beside.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.folder / names(self.split, len(self.shards) + 1)[-1]

    @property
    def _beside(self) -> Path:
        return self._path.with_name(f".{self._path.name}.tmp")

    def _count(self, part: npt.NDArray[Any]) -> None:
        content = part.tobytes()
        self._digest.update(content)
        self._own_digest.update(content)
        self._counts += np.bincount(part, minlength=len(self._counts))
        self._filled += len(part)
        if self._lengths is not None:
            self._bytes += int(self._lengths[part].sum())

    def _finish(self) -> None:
        assert self._file is not None, "a shard has tokens"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._beside.replace(self._path)
        size = None if self._lengths is None else self._bytes
        self.shards.append(Shard(tokens=self._filled, bytes=size, sha256=self._own_digest.hexdigest()))
        self._begin()


def _damaged(path: Path, why: str) -> Problem:
    return Problem("--to", str(path), f"the shard that was written ({why}): remove the folder and prepare it again")
