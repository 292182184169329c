"""From texts to a folder of token shards: in parallel, in bounded memory, and continued where it was stopped."""

from __future__ import annotations

import multiprocessing
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from gpt_ablate.data import chunks, shards, tokenizer_files
from gpt_ablate.data.chunks import Chunk, Division
from gpt_ablate.data.corpus import widths
from gpt_ablate.data.journal import Journal, Place
from gpt_ablate.data.shard_writer import ShardWriter
from gpt_ablate.data.shards import SPLITS, Index
from gpt_ablate.data.tokenizers import Tokenizer, tokenizers
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import tidy, unusable

_LOCK = ".lock"

Encoded = tuple[Chunk, list[npt.NDArray[Any]]]


class Watcher(Protocol):
    """Is told how far the work is."""

    def advance(self, read: int, total: int | None, tokens: int) -> None:
        """Bytes of text that were read, how many there are if that is known, and tokens made of them."""

    def whole(self, name: str, tokens: int) -> None:
        """A shard is whole."""


@dataclass(frozen=True)
class Request:
    """What is to be prepared."""

    folder: Path
    train: Iterable[str]
    """Texts that can be gone through any number of times."""
    val: Iterable[str] | None
    """None: `train_fraction` divides `train`."""
    train_fraction: float
    tokenizer: Mapping[str, Any]
    """Its node of a config."""
    shard_tokens: int
    workers: int
    arguments: dict[str, Any]
    """All that decides what the files hold, as JSON: a folder is continued only with the same."""


def prepare(request: Request, watcher: Watcher) -> tuple[Index, bool]:
    """Write the folder; what its index says, and whether it was finished before.

    Raises UsageError for a folder that holds anything else, for texts or a tokenizer that cannot be had, and for texts
    that changed since the process that is continued read them.
    """
    folder = request.folder
    if (problem := unusable(folder)) or (problem := _foreign(folder)):
        raise UsageError([Problem("--to", str(folder), problem.allowed)])
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / _LOCK, timeout=0))
        except Timeout as error:
            raise UsageError([Problem("--to", str(folder), "a folder that no other process prepares now")]) from error
        if (folder / shards.INDEX).exists():
            index = shards.read_index(folder)
            _check_arguments(request, index.arguments)
            (folder / shards.UNFINISHED).unlink(missing_ok=True)
            return index, True
        tidy(folder)
        try:
            return _write(request, watcher), False
        except UsageError:
            begun = Journal.read(folder)
            if made and begun and not begun.has_shards:
                shutil.rmtree(folder)  # what is refused leaves nothing behind
            raise


def _foreign(folder: Path) -> Problem | None:
    """Why a folder is not one that this module made."""
    ours = (folder / shards.INDEX, folder / shards.UNFINISHED)
    if not folder.exists() or any(path.exists() for path in ours):
        return None
    if others := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        return Problem("--to", str(folder), f"a new or an empty folder; this one holds {', '.join(others[:3])}")
    return None


def _check_arguments(request: Request, before: Mapping[str, Any]) -> None:
    """Raise UsageError if a folder was made from other arguments."""
    problems = [
        Problem("--to", str(request.folder), f"another folder: there {key} is {before.get(key)!r}, not {value!r}")
        for key, value in request.arguments.items()
        if before.get(key) != value
    ]
    if problems:
        raise UsageError(problems)


def _write(request: Request, watcher: Watcher) -> Index:
    folder = request.folder
    journal = Journal.read(folder)
    if journal is None or not journal.has_shards:
        journal = Journal(arguments=request.arguments)
        journal.write(folder)
    _check_arguments(request, journal.arguments)
    division = Division(request.train, request.val, request.train_fraction)
    tokenizer = _tokenizer(request, journal, division)
    dtype = widths(tokenizer.vocab_size)
    writers = [ShardWriter(folder, split, tokenizer, dtype, request.shard_tokens) for split in SPLITS]
    for writer in writers:
        writer.restore([place.shard for place in journal.places[writer.split]])
    work = _left(chunks.chunks(division, tokenizer), journal)
    try:
        with closing(_encoded(work, request, tokenizer, dtype)) as encoded:
            for chunk, ids in encoded:
                _write_chunk(chunk, ids, writers, journal, folder, watcher)
                watcher.advance(chunk.bytes, division.total_bytes, sum(writer.tokens for writer in writers))
        return _finished(request, division, tokenizer, dtype, writers)
    finally:
        for writer in writers:
            writer.abandon()


def _tokenizer(request: Request, journal: Journal, division: Division) -> Tokenizer:
    """The one that an earlier process began with, or a new one, which is kept in the folder."""
    file = request.folder / shards.TOKENIZER
    if journal.tokenizer_sha256 is not None:
        tokenizer = tokenizer_files.load(file)
        if tokenizer.sha256 != journal.tokenizer_sha256:
            allowed = "the tokenizer that the folder was begun with: remove the folder and prepare it again"
            raise UsageError([Problem("--to", str(file), allowed)])
        return tokenizer
    made: Tokenizer = tokenizers.build(request.tokenizer, division.training_texts)
    tokenizer_files.save(made, file)
    journal.tokenizer_sha256 = made.sha256
    journal.write(request.folder)
    return made


def _left(every: Iterable[Chunk], journal: Journal) -> Iterator[Chunk]:
    """The chunks less what whole shards hold. Raises UsageError if the texts are not those that they were made from."""
    after = [journal.after(split) for split in SPLITS]
    known = {place.chunk: place.source_sha256 for places in journal.places.values() for place in places}
    last = -1
    for chunk in every:
        last = chunk.number
        if known.get(last, chunk.source_sha256) != chunk.source_sha256:
            raise UsageError([_changed()])
        pieces = [piece for piece in chunk.pieces if last >= after[piece.split].chunk]
        if pieces:
            yield Chunk(last, pieces, chunk.bytes, chunk.source_sha256)
    if last < max(known, default=-1):
        raise UsageError([_changed()])


def _changed() -> Problem:
    allowed = "the texts that the whole shards were made from; they have changed: remove the folder, then prepare"
    return Problem("texts", None, allowed)


def _encoded(
    work: Iterable[Chunk], request: Request, tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> Generator[Encoded, None, None]:
    """The tokens of chunks, in their order. Raises UsageError for a text that has no tokens."""
    try:
        if request.workers == 1:
            for chunk in work:
                yield chunk, chunks.encode(chunk.pieces, tokenizer, dtype)
            return
        file = str(request.folder / shards.TOKENIZER)
        spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        pool = ProcessPoolExecutor(request.workers, spawn, chunks.begin_worker, (file, dtype.str))
        waiting: deque[tuple[Chunk, Future[list[npt.NDArray[Any]]]]] = deque()
        try:
            for chunk in work:
                waiting.append((chunk, pool.submit(chunks.encode_in_worker, chunk.pieces)))
                if len(waiting) > 2 * request.workers:
                    first, done = waiting.popleft()
                    yield first, done.result()
            for first, done in waiting:
                yield first, done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError([Problem("--tokenizer", request.tokenizer["name"], str(error))]) from error


def _write_chunk(
    chunk: Chunk,
    ids: list[npt.NDArray[Any]],
    writers: list[ShardWriter],
    journal: Journal,
    folder: Path,
    watcher: Watcher,
) -> None:
    for writer, own in zip(writers, ids, strict=True):
        done = journal.after(writer.split)
        begin = done.used if done.chunk == chunk.number else 0
        for used in writer.write(own[begin:]):
            place = Place(
                shard=writer.shards[-1], chunk=chunk.number, used=begin + used, source_sha256=chunk.source_sha256
            )
            journal.places[writer.split].append(place)
            journal.write(folder)
            watcher.whole(shards.names(writer.split, len(writer.shards))[-1], place.shard.tokens)


def _finished(
    request: Request, division: Division, tokenizer: Tokenizer, dtype: np.dtype[Any], writers: list[ShardWriter]
) -> Index:
    if empty := [writer.split for writer in writers if not writer.tokens]:
        key, value = ("--train-fraction", request.train_fraction) if request.val is None else ("--val", None)
        raise UsageError([Problem(key, value, f"texts for both splits; that for {empty[0]} has no tokens")])
    train, val = (writer.close(count) for writer, count in zip(writers, division.documents, strict=True))
    index = Index(
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        source_sha256=division.sha256,
        arguments=request.arguments,
        train=train,
        val=val,
    )
    shards.write_index(request.folder, index)
    (request.folder / shards.UNFINISHED).unlink()
    return index
