"""Texts and token files as training and validation splits."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt_ablate.config.schema import VOCAB_SIZE, Config
from gpt_ablate.data import token_files, tokenizer
from gpt_ablate.data.token_files import Tokens
from gpt_ablate.utils import random_streams
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import content_of, expanded
from gpt_ablate.utils.texts import decode, universal_bytes

_PART = 1 << 20

VERDICT_FILE = "the-verdict.txt"
VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
VERDICT_URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt"


@dataclass(frozen=True)
class Split:
    """A run of tokens, cut into windows of T inputs and the T targets one token later."""

    tokens: Tokens
    context: int
    stride: int

    @property
    def n_windows(self) -> int:
        """How many whole windows there are."""
        return max(0, (len(self.tokens) - 1 - self.context) // self.stride + 1)

    def batch(self, windows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the given windows, each (B, T) int64."""
        starts = [window * self.stride for window in windows.tolist()]
        rows = np.stack([self.tokens[start : start + self.context + 1] for start in starts])
        chunk = torch.from_numpy(rows.astype(np.int64))
        if device.type == "cuda":
            chunk = chunk.pin_memory()  # so that the copy goes on beside the computation
        chunk = chunk.to(device, non_blocking=True)
        return chunk[:, :-1], chunk[:, 1:]

    def order(self, root: int | str, epoch: int) -> Tensor:
        """The windows in the order in which `epoch` visits them; `root` as in `rng`."""
        return torch.randperm(self.n_windows, generator=random_streams.generator(root, f"data/{epoch}"))

    def for_evaluation(self) -> Split:
        """The same tokens in windows that do not overlap: every target counts once."""
        return Split(self.tokens, self.context, self.context)

    def bytes_per_token(self) -> float:
        """Mean length in UTF-8 bytes of the targets that an evaluation of all windows counts."""
        targets = self.tokens[1 : self.for_evaluation().n_windows * self.context + 1]
        lengths = tokenizer.byte_lengths()
        parts = range(0, len(targets), _PART)
        return sum(int(lengths[targets[start : start + _PART]].sum()) for start in parts) / len(targets)

    def unigram_entropy(self) -> float:
        """Entropy of the token frequencies in nats: the loss of a model that knows nothing else."""
        counts = np.zeros(1 << 16, dtype=np.int64)
        for start in range(0, len(self.tokens), _PART):  # a part at a time: the whole may not fit in memory
            counts += np.bincount(self.tokens[start : start + _PART], minlength=1 << 16)
        p = counts[counts > 0] / len(self.tokens)
        return float(-(p * np.log(p)).sum())


@dataclass(frozen=True)
class Corpus:
    """The two splits of a data set and the SHA-256 of what they were made from.

    `stored_sha256` is that of texts as they lie, which older versions took, where they were not read so
    (`texts.universal`).
    """

    train: Split
    val: Split
    sha256: str
    stored_sha256: str | None = None

    def describe(self) -> dict[str, float | int | str]:
        """What a run records of its data; entropies in nats per token."""
        return {
            "sha256": self.sha256,
            "train_tokens": len(self.train.tokens),
            "val_tokens": len(self.val.tokens),
            "train_windows": self.train.n_windows,
            "val_windows": self.val.for_evaluation().n_windows,
            "val_bytes_per_token": self.val.bytes_per_token(),
            "unigram_entropy": self.train.unigram_entropy(),
            "ln_vocab": math.log(VOCAB_SIZE),
        }


def load(config: Config) -> Corpus:
    """The corpus that `config.data` names, cut to `config.model.context_length`.

    Raises UsageError for data that is missing, unreadable or too short to train and evaluate on.
    """
    data, context = config.data, config.model.context_length
    train, val, sha256, stored = _tokens(data.name, data.dir, tuple(data.paths), data.train_fraction, data.dtype)
    assert data.stride is not None, "resolve() fills the stride"
    corpus = Corpus(Split(train, context, data.stride), Split(val, context, data.stride), sha256, stored)
    problems = []
    if corpus.val.n_windows < 1:
        allowed = f"the validation split has {len(val)} tokens, one window needs {context + 1}"
        problems.append(Problem("model.context_length", context, allowed))
    if corpus.train.n_windows < data.batch_size:
        allowed = f"the training split has {len(train)} tokens, {corpus.train.n_windows} windows of {context + 1}"
        problems.append(Problem("data.batch_size", data.batch_size, allowed))
    if problems:
        raise UsageError(problems)
    return corpus


@functools.lru_cache(maxsize=8)
def _tokens(
    name: str, folder: str | None, paths: tuple[str, ...], fraction: float, dtype: str | None
) -> tuple[Tokens, Tokens, str, str | None]:
    """Training and validation tokens and the two hashes of a Corpus; kept, since a sweep's runs share them."""
    if name == "tokens":
        return (*token_files.read(folder, dtype), None)
    if name == "sample":
        sources = [resources.files("gpt_ablate.data").joinpath("assets/sample.txt").read_bytes()]
    elif name == "verdict":
        sources = [_verdict(folder)]
    else:
        sources = [_read(path) for path in paths]
    texts = [_decode(source, where) for source, where in zip(sources, paths or (name,), strict=True)]
    read, stored = (
        hashlib.sha256(b"\0".join(each)).hexdigest() for each in ([*map(universal_bytes, sources)], sources)
    )
    cut = int(fraction * sum(map(len, texts)))
    train, val = _encode_documents(texts, 0, cut), _encode_documents(texts, cut, None)
    return train, val, read, None if stored == read else stored


def _encode_documents(texts: list[str], start: int, stop: int | None) -> Tokens:
    """Tokens of the characters start..stop of all texts laid end to end, end-of-text between two of them."""
    ids: list[int] = []
    offset = 0
    for text in texts:
        piece = text[max(0, start - offset) : None if stop is None else max(0, stop - offset)]
        offset += len(text)
        if piece:
            ids += [tokenizer.gpt2().eot_token] if ids else []
            ids += tokenizer.encode(piece)
    return np.array(ids, dtype=np.uint16)


def _decode(source: bytes, where: str) -> str:
    try:
        text = decode(source)
    except ValueError as error:
        raise UsageError([Problem("data.path", where, str(error))]) from error
    if not text.strip():
        raise UsageError([Problem("data.path", where, "a text that is not empty")])
    return text


def _read(path: str) -> bytes:
    try:
        return content_of(expanded("data.path", path))
    except OSError as error:
        raise UsageError([Problem("data.path", path, f"a file that can be read ({error.strerror})")]) from error


def _verdict(folder: str | None) -> bytes:
    """The Verdict from `folder` or $GPT_ABLATE_DATA, else from the user's cache, else downloaded into it."""
    import pooch

    for key, place in (("data.dir", folder), ("$GPT_ABLATE_DATA", os.environ.get("GPT_ABLATE_DATA"))):
        if place and (path := expanded(key, place) / VERDICT_FILE).is_file():
            content = path.read_bytes()
            if (found := hashlib.sha256(content).hexdigest()) != VERDICT_SHA256:
                saved = hashlib.sha256(universal_bytes(content)).hexdigest() == VERDICT_SHA256
                told = "its byte order mark or line ends were changed" if saved else "for another text use data=text"
                allowed = f"The Verdict with SHA-256 {VERDICT_SHA256}, found {found}; {told}"
                raise UsageError([Problem(key, str(path), allowed)])
            return content
    try:
        cached = pooch.retrieve(
            VERDICT_URL, known_hash=VERDICT_SHA256, fname=VERDICT_FILE, path=pooch.os_cache("gpt_ablate")
        )
    except (OSError, ValueError) as error:
        allowed = (
            f"The Verdict is not here and could not be downloaded ({type(error).__name__}). Either connect to the "
            f"network once, or put {VERDICT_FILE} in a folder and name it with data.dir=FOLDER or "
            "GPT_ABLATE_DATA=FOLDER, or train on the text in the package with data=sample"
        )
        raise UsageError([Problem("data", "verdict", allowed)]) from error
    return Path(cached).read_bytes()
