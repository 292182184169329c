"""A folder of token shards: what lies in it, and each of its splits as one array.

index.json        what `Index` says, and the SHA-256 of that
tokenizer.json    the tokenizer that made the tokens
train_00000.bin   the tokens of the training split, little-endian and nothing else; train_00001.bin, ...
val_00000.bin     those of the validation split
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from gpt_ablate.data import tokenizer_files
from gpt_ablate.data.corpus import Split
from gpt_ablate.data.tokenizers import Tokenizer
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import content_of, write_json

FORMAT, VERSION = "gpt_ablate token shards", 1
INDEX, TOKENIZER, UNFINISHED = "index.json", "tokenizer.json", "unfinished.json"
SPLITS = ("train", "val")
_OPEN = 128
"""Shards that are mapped at a time: each takes a file descriptor, of which a process often has 1,024."""
_PART = 1 << 22


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Shard(_Record):
    """One file of tokens."""

    tokens: int
    bytes: int | None
    """Of the text of the tokens in UTF-8; None if the tokens do not keep it (`Tokenizer.byte_lengths`)."""
    sha256: str


class SplitIndex(_Record):
    """The shards of a split, in order, and what all of them hold."""

    documents: int
    tokens: int
    bytes: int | None
    unigram_entropy: float
    """In nats."""
    sha256: str
    """Of the tokens of all shards, one after the other."""
    shards: list[Shard]


class Index(_Record):
    """What index.json says of the folder."""

    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    tokenizer_sha256: str
    source_sha256: str
    """Of the texts that the tokens were made from."""
    arguments: dict[str, Any]
    """What `gpt_ablate.prepare` was asked for."""
    train: SplitIndex
    val: SplitIndex

    @property
    def width(self) -> np.dtype[Any]:
        """The type of the integers in the shards."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def sha256(self) -> str:
        """Hash of the tokens of both splits, in whatever shards they lie."""
        return hashlib.sha256(f"{self.train.sha256} {self.val.sha256}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PreparedSplit(Split):
    """A split whose tokens were counted when they were written."""

    index: SplitIndex

    def bytes_per_token(self) -> float | None:
        """As in `Split`, without reading more than the tokens that an evaluation leaves out."""
        lengths = self.tokenizer.byte_lengths()
        if lengths is None or self.index.bytes is None:
            return None
        counted = self.for_evaluation().n_windows * self.context
        left_out = [self.tokens[:1], self.tokens[counted + 1 :]]
        return (self.index.bytes - sum(int(lengths[tokens].sum()) for tokens in left_out)) / counted

    def unigram_entropy(self) -> float:
        """As in `Split`."""
        return self.index.unigram_entropy


class ShardedTokens:
    """The shards of a split as one array (N,), memory-mapped where it is read."""

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.paths, self.dtype = paths, dtype
        self._starts = [0, *accumulate(lengths)]
        self._mapped = functools.lru_cache(_OPEN)(self._map)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, positions: slice) -> npt.NDArray[Any]:
        """The tokens at these positions; a view of the file if they lie in one."""
        start, stop, step = positions.indices(len(self))
        assert step == 1, "tokens are read in order"
        parts = []
        shard = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            first, last = self._starts[shard : shard + 2]
            parts.append(self._mapped(shard)[start - first : stop - first])
            start, shard = last, shard + 1
        if not parts:
            return np.empty(0, self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _map(self, shard: int) -> npt.NDArray[Any]:
        length = self._starts[shard + 1] - self._starts[shard]
        return np.memmap(self.paths[shard], self.dtype, "r", shape=(length,))


def names(split: str, count: int) -> list[str]:
    """The files of the first `count` shards of a split."""
    return [f"{split}_{number:05d}.bin" for number in range(count)]


def write_index(folder: Path, index: Index) -> None:
    """Write index.json, by which the folder is finished."""
    content = {"format": FORMAT, "version": VERSION, **index.model_dump()}
    write_json(folder / INDEX, content | {"sha256": _digest(content)})


def read_index(folder: Path) -> Index:
    """What index.json says. Raises UsageError for one that is unreadable, damaged, or of another format or version."""
    path = folder / INDEX

    def refused(allowed: str) -> UsageError:
        return UsageError([Problem("data.dir", str(path), allowed)])

    try:
        content = orjson.loads(content_of(path))
    except OSError as error:
        raise refused(f"a file that can be read ({error.strerror})") from error
    except ValueError as error:
        raise refused(f"an index that is not damaged ({error})") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise refused("an index of token shards, as `python -m gpt_ablate.prepare` writes it")
    if (version := content.pop("version", None)) != VERSION:
        told = f"an index of version {VERSION}, not {version}: prepare the texts again with this version of gpt_ablate"
        raise refused(told)
    said = content.pop("sha256", None)
    if said != (found := _digest({"format": FORMAT, "version": VERSION, **content})):
        raise refused(f"an index that is not damaged (it says that its SHA-256 is {said}; it is {found})")
    try:
        return Index.model_validate(content)
    except ValidationError as error:
        (first, *_) = error.errors()
        where = ".".join(map(str, first["loc"]))
        raise refused(f"an index of token shards ({where}: {first['msg']})") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_folder(folder: Path, full: bool) -> tuple[Index, Tokenizer, list[ShardedTokens]]:
    """The index, the tokenizer, and the tokens of both splits.

    Raises UsageError for shards that are missing or do not have the size that the index says, and for a tokenizer that
    is not the one of the index. With `full` all shards are read too, which finds damaged ones.
    """
    if (folder / UNFINISHED).exists() and not (folder / INDEX).exists():
        allowed = "a folder that is finished: the command that prepares it continues if it is launched again"
        raise UsageError([Problem("data.dir", str(folder), allowed)])
    index = read_index(folder)
    tokens: list[ShardedTokens] = []
    every: list[tuple[Path, Shard]] = []
    for split in SPLITS:
        shards: list[Shard] = getattr(index, split).shards
        paths = [folder / name for name in names(split, len(shards))]
        every += zip(paths, shards, strict=True)
        tokens.append(ShardedTokens(paths, [shard.tokens for shard in shards], index.width))
    problems = [problem for path, shard in every if (problem := _misfit(path, shard.tokens * index.width.itemsize))]
    tokenizer = _tokenizer(folder / TOKENIZER, index)
    if full and not problems:
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda one: _damage(one[0], one[1], index), every)
            problems = [problem for problem in found if problem]
    if problems:
        raise UsageError(problems)
    return index, tokenizer, tokens


def _tokenizer(file: Path, index: Index) -> Tokenizer:
    try:
        tokenizer = tokenizer_files.load(file)
    except (OSError, ValueError) as error:
        told = f"the tokenizer that made the tokens ({getattr(error, 'strerror', None) or error})"
        raise UsageError([Problem("data.dir", str(file), told)]) from error
    if tokenizer.sha256 != index.tokenizer_sha256:
        told = f"the tokenizer of {INDEX}, with SHA-256 {index.tokenizer_sha256}, not {tokenizer.sha256}"
        raise UsageError([Problem("data.dir", str(file), told)])
    return tokenizer


def _misfit(path: Path, size: int) -> Problem | None:
    """What is wrong with a file that should have this many bytes."""
    if not path.is_file():
        return Problem("data.dir", str(path), f"the shard that {INDEX} names: there is no such file")
    if (found := path.stat().st_size) != size:
        return Problem("data.dir", str(path), f"a shard of {size:,} bytes, not {found:,}: it is not whole")
    return None


def _damage(path: Path, shard: Shard, index: Index) -> Problem | None:
    """What is wrong with the content of a file."""
    digest = hashlib.sha256()
    highest = 0
    tokens = np.memmap(path, index.width, "r")
    for start in range(0, len(tokens), _PART):
        part = tokens[start : start + _PART]
        digest.update(part.tobytes())
        highest = max(highest, int(part.max()))
    if digest.hexdigest() != shard.sha256:
        allowed = f"a shard that is not damaged (SHA-256 {shard.sha256}, found {digest.hexdigest()})"
        return Problem("data.dir", str(path), allowed)
    if highest >= index.vocab_size:
        return Problem("data.dir", str(path), f"tokens below {index.vocab_size}, found {highest}")
    return None
