"""Texts as a folder of token shards, for `data=tokens`: `python -m gpt_ablate.prepare books/ --to shards`.

Stopped in the middle, the same command continues.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpt_ablate.utils import signals, streams
from gpt_ablate.utils.errors import Problem, UsageError, closest
from gpt_ablate.utils.files import without_home
from gpt_ablate.utils.messages import refusals, say

if TYPE_CHECKING:  # worker processes import this module, and need none of it
    from gpt_ablate.data.documents import Documents
    from gpt_ablate.data.preparation import Request
    from gpt_ablate.data.shards import Index

_TOKENIZERS = ("gpt2", "bytes", "chars", "bpe")


@streams.outlive(needed=False)
def main() -> None:
    """The command: exit code 0 for a finished folder, 2 for a request that is refused, 130 after Ctrl-C."""
    try:
        with signals.raised(), refusals():
            _prepare(_parser().parse_args())
    except signals.Interrupted as stop:
        say("stopped; the same command continues after the last whole shard")
        sys.exit(128 + stop.number)
    except BrokenProcessPool:
        say(
            "a worker process was ended, as the system does when memory is full; the same command continues after the "
            "last whole shard, and fewer --workers take less memory"
        )
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpt_ablate.prepare", description=__doc__)
    parser.add_argument(
        "texts",
        nargs="+",
        help="files, folders or patterns, as data.path takes them (.txt, .md, .jsonl, .parquet, a data set that "
        "Hugging Face's save_to_disk wrote), or one named set, such as classics",
    )
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where the shards go")
    parser.add_argument(
        "--tokenizer", default="gpt2", help=f"{', '.join(_TOKENIZERS)}, or the path of a tokenizer.json (default gpt2)"
    )
    parser.add_argument("--vocab-size", type=int, help="of a tokenizer that is trained on the texts")
    parser.add_argument("--val", nargs="+", metavar="TEXTS", help="texts for validation, which are not trained on")
    parser.add_argument(
        "--train-fraction",
        type=float,
        default=0.9,
        help="without --val: of 1,000 documents or more each goes to training with this probability, by its hash; of "
        "fewer this fraction of all characters does (default 0.9)",
    )
    parser.add_argument("--column", help="which column of .jsonl and .parquet files holds the text (default text)")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes (default: one for each core)")
    parser.add_argument("--shard-tokens", type=int, default=10**8, help="tokens of a shard, at most (default 10**8)")
    return parser


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(args: argparse.Namespace) -> None:
    problems = [
        Problem(f"--{key.replace('_', '-')}", getattr(args, key), "1 or more")
        for key in ("workers", "shard_tokens")
        if getattr(args, key) < 1
    ]
    if not 0 < args.train_fraction < 1:
        problems.append(Problem("--train-fraction", args.train_fraction, "more than 0 and less than 1"))
    if problems:
        raise UsageError(problems)
    from gpt_ablate.data.preparation import prepare

    console = streams.console()
    with _Bar(console) as bar:
        index, before = prepare(_request(args), bar)
    _tell(console, args.to, index, before)


def _request(args: argparse.Namespace) -> Request:
    from gpt_ablate.data.preparation import Request

    node = _tokenizer(args.tokenizer, args.vocab_size)
    train, val = _texts(args.texts, args.val, args.column)
    arguments = {
        "texts": [_recorded(entry) for entry in args.texts],
        "val": args.val and [_recorded(entry) for entry in args.val],
        "train_fraction": None if args.val else args.train_fraction,
        "column": args.column,
        "tokenizer": without_home(node),
        "shard_tokens": args.shard_tokens,
    }
    return Request(args.to, train, val, args.train_fraction, node, args.shard_tokens, args.workers, arguments)


def _tokenizer(named: str, vocab_size: int | None) -> dict[str, Any]:
    """The node of a config that --tokenizer and --vocab-size stand for."""
    from gpt_ablate.data import tokenizer_files  # noqa: F401  (registers the tokenizers)
    from gpt_ablate.data.tokenizers import tokenizers

    node: dict[str, Any] = {"name": named}
    if named not in _TOKENIZERS:
        if not named.endswith(".json"):
            allowed = f"{', '.join(_TOKENIZERS)}, or the path of a tokenizer.json"
            raise UsageError([Problem("--tokenizer", named, allowed, closest(named, _TOKENIZERS))])
        node = {"name": "file", "path": os.path.abspath(named)}
    if vocab_size is not None:
        node["vocab_size"] = vocab_size
    if problems := tokenizers.check(node):
        raise UsageError(problems)
    return node


class _Texts:
    """The texts of documents, any number of times."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def __iter__(self) -> Iterator[str]:
        return self._documents.texts()


def _texts(train: Sequence[str], val: Sequence[str] | None, column: str | None) -> tuple[_Texts, _Texts | None]:
    """The texts to train on less those for validation, and these. Raises UsageError for what names no texts."""
    from gpt_ablate.data.documents import Documents

    held = _sources(val, column, "--val") if val else []
    left = [source for source in _sources(train, column, "texts") if source not in held]
    if not left:
        raise UsageError([Problem("--val", val, "some of the texts; these are all, and none is left to train on")])
    return _Texts(Documents(left)), _Texts(Documents(held)) if val else None


def _sources(entries: Sequence[str], column: str | None, key: str) -> list[Any]:
    from gpt_ablate.data.documents import files
    from gpt_ablate.data.named_sets import located, text_sets

    if len(entries) == 1 and _is_named(entries[0]):
        return list(located(text_sets()[entries[0]], None, takes_dir=False))
    return list(files(entries, column, key))


def _is_named(entry: str) -> bool:
    from gpt_ablate.data.named_sets import text_sets

    return entry in text_sets() and not os.path.lexists(entry)


def _recorded(entry: str) -> Any:
    """What the index says of an entry: the same for the same place, whatever the working directory."""
    return entry if _is_named(entry) else without_home(os.path.abspath(os.path.expanduser(entry)))


class _Bar:
    """Megabytes, tokens and tokens per second; where there is no terminal, a line for each shard."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began, self._first = time.monotonic(), -1
        self._bar = Progress(
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[tokens]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, tokens="")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, read: int, total: int | None, tokens: int) -> None:
        if self._first < 0:  # a process that continues did not make the tokens before
            self._began, self._first = time.monotonic(), tokens
        rate = (tokens - self._first) / max(1e-3, time.monotonic() - self._began)
        told = f"{tokens:,} tokens, {rate:,.0f} a second"
        self._bar.update(self._task, completed=read, total=total, tokens=told)

    def whole(self, name: str, tokens: int) -> None:
        self._console.print(f"{name}: {tokens:,} tokens", markup=False, highlight=False)


def _tell(console: Console, folder: Path, index: Index, before: bool) -> None:
    """What the folder holds, and how to train on it."""
    lines = [f"{folder}: {'was finished before with the same arguments' if before else 'finished'}"]
    for name in ("train", "val"):
        split = getattr(index, name)
        per_token = f", {split.bytes / split.tokens:.2f} bytes each" if split.bytes is not None else ""
        lines.append(f"  {name}: {split.tokens:,} tokens{per_token}; documents: {split.documents:,}")
    own = "" if index.arguments["tokenizer"]["name"] == "gpt2" else " tokenizer=own"
    lines.append(f"train on it: python -m gpt_ablate.train data=tokens data.dir={shlex.quote(str(folder))}{own}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
