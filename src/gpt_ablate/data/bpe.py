"""Byte-level byte-pair encoding, trained on the training split, and kept in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import Field

from gpt_ablate.data.tokenizer_json import HuggingFace, library, sequential, words_of
from gpt_ablate.data.tokenizers import Texts, Tokenizer, hash_of, tokenizers, utf8
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import read_json, user_cache, write_json

_END_OF_TEXT = "<|endoftext|>"
_WITHOUT_MERGES = 257


@tokenizers.register("bpe")
def _bpe(texts: Texts, *, vocab_size: Annotated[int, Field(ge=_WITHOUT_MERGES)] = 1024) -> Tokenizer:
    version = library("bpe").__version__
    sha256, n_bytes = _measured(texts)
    cache = user_cache()
    file = cache / "tokenizers" / f"{hash_of(['bpe', sha256, vocab_size, version])}.json" if cache else None
    content = _cached(file) if file else None
    if content is None:
        content = _trained(texts, min(vocab_size, _WITHOUT_MERGES + n_bytes))  # the library reserves that memory
        if file:
            _keep(file, content)
    tokenizer = HuggingFace(content, "bpe")
    if (found := tokenizer.vocab_size) < vocab_size:
        told = f"at most {found}: the training split has only {found - _WITHOUT_MERGES} merges beside the 256 bytes"
        raise UsageError([Problem("tokenizer.vocab_size", vocab_size, f"{told} and end-of-text")])
    return tokenizer


def _measured(texts: Texts) -> tuple[str, int]:
    """SHA-256 of the documents, where each ends included, and their bytes in all."""
    sha256, n_bytes = hashlib.sha256(), 0
    for text in texts():
        try:
            content = utf8(text)
        except ValueError as error:
            raise UsageError([Problem("tokenizer.name", "bpe", f"a training split in Unicode ({error})")]) from error
        sha256.update(len(content).to_bytes(8, "little") + content)
        n_bytes += len(content)
    return sha256.hexdigest(), n_bytes


def _trained(texts: Texts, vocab_size: int) -> dict[str, Any]:
    """The tokenizer.json; the same on every machine, however many threads there are."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import decoders, models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with sequential():
        trained.train_from_iterator((words for text in texts() for words in words_of(text)), trainer)
    return orjson.loads(trained.to_str())


def _cached(file: Path) -> dict[str, Any] | None:
    """What `_keep` wrote; None if there is no such file, or not a whole one, so that it is made again."""
    try:
        kept = read_json(file)
    except UsageError:
        return None
    content = kept.get("tokenizer")
    return content if isinstance(content, dict) and hash_of(content) == kept.get("sha256") else None


def _keep(file: Path, content: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # without a cache the next run trains again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"sha256": hash_of(content), "tokenizer": content})
