"""Data sets of tokens: a folder of shards that `gpt_ablate.prepare` wrote, or nanoGPT's train.bin and val.bin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gpt_ablate.config.rules import rule
from gpt_ablate.config.schema import Config
from gpt_ablate.data import shards, token_files
from gpt_ablate.data.corpus import Corpus, DataContext, sources
from gpt_ablate.data.gpt2_encoding import Gpt2
from gpt_ablate.data.ids import Ids
from gpt_ablate.data.shards import PreparedSplit
from gpt_ablate.data.tokenizers import OWN, Tokenizer
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import expanded


@sources.register("tokens")
def tokens(
    context: DataContext,
    *,
    dir: str | None,
    dtype: Literal["uint16", "uint32"] | None = None,
    vocab_size: Annotated[int, Field(ge=1, le=1 << 32)] | None = None,
    verify: Literal["full"] | None = None,
) -> Corpus:
    """A folder of tokens. Raises UsageError for a folder or files that are damaged or hold something else.

    Shards were counted and hashed when they were written, so opening them reads only the index, unless `verify` is
    full. Other token files are read whole.
    """
    assert dir, "_dir refuses that"
    folder = expanded("data.dir", dir)
    if any((folder / name).exists() for name in (shards.INDEX, shards.UNFINISHED)):
        return _of_shards(context, folder, dtype, vocab_size, verify == "full")
    if verify is not None:
        allowed = f"null: a folder without {shards.INDEX} has no hashes to verify its files by"
        raise UsageError([Problem("data.verify", verify, allowed)])
    tokenizer = _of_files(context, vocab_size)
    train, val, sha256 = token_files.read(dir, dtype, tokenizer.vocab_size, of_gpt2=isinstance(tokenizer, Gpt2))
    return Corpus(context.split(train, tokenizer), context.split(val, tokenizer), tokenizer, sha256)


@rule("data.name", "data.dir")
def _dir(config: Config) -> list[Problem]:
    folder = getattr(config.data, "dir", None)
    if config.data.name != "tokens" or folder:
        return []
    allowed = "the folder that holds train.bin and val.bin, or the shards that gpt_ablate.prepare wrote"
    return [Problem("data.dir", folder, allowed)]


def _of_shards(context: DataContext, folder: Path, dtype: str | None, vocab_size: int | None, full: bool) -> Corpus:
    index, tokenizer, arrays = shards.open_folder(folder, full)
    problems = [
        Problem(f"data.{key}", given, f"null, or {found}: {shards.INDEX} says so")
        for key, given, found in (("dtype", dtype, index.dtype), ("vocab_size", vocab_size, index.vocab_size))
        if given not in (None, found)
    ]
    if context.tokenizer_name != OWN and _chosen(context).sha256 != tokenizer.sha256:
        made_by = index.arguments.get("tokenizer")
        allowed = f"{OWN}: the shards were made with another tokenizer, {made_by}, which lies beside them"
        problems.append(Problem("tokenizer.name", context.tokenizer_name, allowed, OWN))
    if problems:
        raise UsageError(problems)
    train, val = (
        PreparedSplit(all_tokens, context.context_length, context.stride, tokenizer, context.replacement, index=split)
        for all_tokens, split in zip(arrays, (index.train, index.val), strict=True)
    )
    return Corpus(train, val, tokenizer, index.sha256)


def _of_files(context: DataContext, vocab_size: int | None) -> Tokenizer:
    """What made the tokens of files that do not say it themselves."""
    if context.tokenizer_name == OWN:
        if vocab_size is None:
            allowed = (
                f"the size of the vocabulary: tokenizer={OWN} does not tell it, and the folder has no {shards.INDEX}"
            )
            raise UsageError([Problem("data.vocab_size", None, allowed)])
        return Ids(vocab_size)
    tokenizer = _chosen(context)
    if vocab_size not in (None, tokenizer.vocab_size):
        of_it = f"{tokenizer.vocab_size}, the vocabulary of tokenizer={context.tokenizer_name}"
        allowed = f"{of_it}; for tokens of another one choose tokenizer={OWN}"
        raise UsageError([Problem("data.vocab_size", vocab_size, allowed)])
    return tokenizer


def _chosen(context: DataContext) -> Tokenizer:
    """The tokenizer that the config chooses. Raises UsageError for one that is trained: there are no texts."""

    def no_texts() -> Iterator[str]:
        allowed = f"a tokenizer that is not trained: there are no texts here to train it on; {OWN} takes the data set's"
        raise UsageError([Problem("tokenizer.name", context.tokenizer_name, allowed, OWN)])

    return context.make_tokenizer(no_texts)
