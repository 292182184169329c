"""Tokenizers of Hugging Face's package tokenizers, from their tokenizer.json."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from gpt_ablate.data.token_texts import pieces_of
from gpt_ablate.data.tokenizers import Texts, Tokenizer, hash_of, restores, tokenizers, utf8
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.file_formats import format_of
from gpt_ablate.utils.files import content_of, expanded

_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
_WORD_END = re.compile(r"\S(?=[ \n])")
_PIECE = 1 << 16
_PARALLEL = "TOKENIZERS_PARALLELISM"


def library(option: str) -> ModuleType:
    """The package tokenizers. Raises UsageError, for `tokenizer.name=option`, where it is not installed."""
    try:
        import tokenizers as package
    except ImportError as error:
        told = "the package tokenizers is not installed: pip install 'gpt_ablate[tokenizers]'"
        raise UsageError([Problem("tokenizer.name", option, told)]) from error
    return package


@contextlib.contextmanager
def sequential() -> Iterator[None]:
    """The library uses no threads of its own: after it did, versions before 0.23 warn at each fork of this process."""
    if _PARALLEL in os.environ:  # the user decides
        yield
        return
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        os.environ.pop(_PARALLEL, None)


def words_of(text: str) -> Iterator[str]:
    """`text` in pieces of whole words of GPT-2's pattern: between a space and what is none before it, a word ends.

    The library needs 170 bytes of memory for each character that it gets at once.
    """
    start = 0
    while start < len(text):
        end = _WORD_END.search(text, start + _PIECE)
        stop = end.end() if end else len(text)
        yield text[start:stop]
        start = stop


class HuggingFace(Tokenizer):
    """What a tokenizer.json describes, less truncation, padding and dropout.

    Nothing is added around a text. The text of a special token is ordinary text, except where the model of the
    library takes it as one word (WordLevel, Unigram). Other added tokens are found in texts, as the file says.
    """

    def __init__(self, content: dict[str, Any], option: str = "file") -> None:
        """Raises ValueError for what is no tokenizer, UsageError without the library."""
        package = library(option)
        model = content.get("model")
        if not isinstance(model, dict):
            raise ValueError("it has no model")
        off = {"dropout": None} if "dropout" in model else {}
        self._content = content | {"truncation": None, "padding": None, "model": model | off}
        self.sha256 = hash_of(self._content)
        try:
            self._tokenizer = package.Tokenizer.from_str(orjson.dumps(self._content).decode())
        except Exception as error:  # the library raises no narrower class
            raise ValueError(str(error)) from error
        self._tokenizer.encode_special_tokens = True
        self._tokens = {id: token for token, id in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        if not self._tokens:
            raise ValueError("it has no tokens")
        self.vocab_size = max(self._tokens) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(id for id, token in added.items() if token.special)
        self._finds_added = len(added) > len(self._special)
        ends = (self._tokenizer.token_to_id(token) for token in _ENDS)
        self.end_of_text = next((id for id in ends if id is not None), None)

    def encode(self, text: str) -> list[int]:
        """What the library makes of the whole text. Raises ValueError for text that it cannot encode."""
        utf8(text)
        with sequential():
            if len(text) <= _PIECE or not self._splits_as_gpt2:
                return self._encode(text)
            with ThreadPoolExecutor() as threads:
                return [id for ids in threads.map(self._encode, words_of(text)) for id in ids]

    def _encode(self, text: str) -> list[int]:
        try:
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"the tokenizer cannot encode this text ({error})") from error
        return encoding.ids

    @property
    def _splits_as_gpt2(self) -> bool:
        """Whether words are GPT-2's and no step looks beyond a word, so that pieces of a text have its tokens."""
        splitter = self._content.get("pre_tokenizer") or {}
        return (
            splitter.get("type") == "ByteLevel"
            and splitter.get("use_regex", True)
            and not splitter.get("add_prefix_space", True)
            and self._content.get("normalizer") is None
            and not self._finds_added
        )

    @cached_property
    def _pieces(self) -> tuple[dict[int, bytes], bool]:
        in_model = self._tokenizer.get_vocab(with_added_tokens=False).values()
        added = self._special | (self._tokens.keys() - set(in_model))
        return pieces_of(self._tokens, added, self.encode, self._decode)

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for, in UTF-8; nothing for an id that the vocabulary leaves out.

        Where tokens do not keep the text, it is what the decoder makes of them.
        """
        return self._pieces[0].get(token, b"")

    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """Bytes of each token in UTF-8, (V,); 0 for special tokens. None if tokens do not keep the text.

        A space that the tokenizer itself puts before a text counts. Where it changes characters to Unicode's
        form C, they count in that form.
        """
        return self._lengths

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int64] | None:
        pieces, keep_the_text = self._pieces
        if not keep_the_text:
            return None
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for id in self._tokens.keys() - self._special:
            lengths[id] = len(pieces[id])
        return lengths

    def content(self) -> dict[str, Any]:
        """The tokenizer.json."""
        return self._content


@tokenizers.register("file")
def _file(texts: Texts, *, path: str | None = None) -> Tokenizer:
    if path is None:
        raise UsageError([Problem("tokenizer.path", path, "the tokenizer.json to use: tokenizer.path=FILE")])
    library("file")
    content = _read(path)
    try:
        return HuggingFace(content)
    except ValueError as error:
        told = f"a tokenizer.json that the package tokenizers can read ({error})"
        raise UsageError([Problem("tokenizer.path", path, told)]) from error


@restores("file")
def _same(content: dict[str, Any]) -> Tokenizer:
    return HuggingFace(content)


def _read(path: str) -> dict[str, Any]:
    """The JSON object of a tokenizer.json. Raises UsageError, saying what to take, for anything else."""
    place = expanded("tokenizer.path", path)
    beside = place / "tokenizer.json" if place.is_dir() else place.with_name("tokenizer.json")
    closest = str(beside) if beside != place and beside.is_file() else None

    def refused(told: str) -> UsageError:
        return UsageError([Problem("tokenizer.path", path, f"a tokenizer.json {told}", closest)])

    try:
        content = content_of(place)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        raise refused(f"that can be read ({getattr(error, 'strerror', None) or error})") from error
    if what := format_of(content):
        raise refused(f"; this is {what}")
    try:
        parsed = orjson.loads(content.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        told = "; a .model of SentencePiece becomes one by save_pretrained of transformers"
        raise refused(f"in JSON ({error}){told * (place.suffix == '.model')}") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("model"), dict):
        raise refused(f"with a model in it; this is {_what(parsed)}. Take the tokenizer.json of that tokenizer")
    return parsed


def _what(parsed: Any) -> str:
    """What other files of a tokenizer look like."""
    if not isinstance(parsed, dict):
        return f"JSON, but a {type(parsed).__name__} and not an object"
    if "tokenizer_class" in parsed or "added_tokens_decoder" in parsed:
        return "a tokenizer_config.json, which has settings and no vocabulary"
    if parsed and all(isinstance(id, int) for id in parsed.values()):
        return "a vocab.json, a vocabulary without its merges"
    if "model_type" in parsed or "architectures" in parsed:
        return "a config.json, which describes a model"
    return "another object in JSON"
