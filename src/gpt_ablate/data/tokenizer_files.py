"""Tokenizers kept as files, from which the same ones are made."""

from __future__ import annotations

from pathlib import Path

from gpt_ablate.data import bpe, characters, gpt2_encoding, ids, tokenizer_json  # noqa: F401  (they register restorers)
from gpt_ablate.data.tokenizers import Tokenizer, restorers
from gpt_ablate.utils.errors import Problem, UsageError, closest
from gpt_ablate.utils.files import read_json, write_json


def save(tokenizer: Tokenizer, file: Path) -> None:
    """Write the whole file or nothing; that of `bpe` and `file` is a tokenizer.json of Hugging Face's tokenizers."""
    write_json(file, tokenizer.content())


def load(file: Path) -> Tokenizer:
    """The tokenizer that was saved there.

    Raises UsageError for a file that is not there or is damaged, and where the library that reads it is missing.
    """
    content = read_json(file)
    name = content.get("name", "file")
    if name not in restorers:
        told = f"a tokenizer named one of {', '.join(sorted(restorers))}, not {name!r}"
        raise UsageError([Problem("tokenizer", str(file), told, closest(name, restorers))])
    try:
        tokenizer = restorers[name](content)
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        told = f"a tokenizer that can be read; this file is damaged ({type(error).__name__}: {error})"
        raise UsageError([Problem("tokenizer", str(file), told)]) from error
    if tokenizer.content() != content:
        raise UsageError([Problem("tokenizer", str(file), "the tokenizer that was saved; this file was changed")])
    return tokenizer
