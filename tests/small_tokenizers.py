"""Tokenizers of the kinds that people have, made here with Hugging Face's library."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SAMPLE = resources.files("gpt_ablate.data").joinpath("assets/sample.txt").read_text("utf-8")
END = "<|endoftext|>"


def gpt2_like(vocab_size: int = 400) -> Tokenizer:
    """Merges of bytes; trained by the library alone, as `tokenizer=bpe` should be."""
    return Tokenizer.from_str(_gpt2_like(vocab_size))


@functools.cache
def _gpt2_like(vocab_size: int) -> str:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([SAMPLE], trainer)
    return made.to_str()


def llama_like(legacy: bool = False) -> Tokenizer:
    """Merges of characters, with U+2581 for a space and tokens of bytes for what has no character."""
    return Tokenizer.from_str(_llama_like(legacy))


@functools.cache
def _llama_like(legacy: bool) -> str:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([SAMPLE], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [(first, second) for first, second in model["merges"]]
    vocab = {token: id for id, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made.to_str()


def bert_like() -> Tokenizer:
    """Pieces of words in lower case, which do not keep the text."""
    words = ["[UNK]", "[SEP]", "hello", "##s", "world", "a", "!"]
    made = Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["[UNK]", "[SEP]"])
    made.post_processor = processors.TemplateProcessing("$A [SEP]", special_tokens=[("[SEP]", 1)])
    return made


def words_without_unknown() -> Tokenizer:
    """Whole words, and no token for any other."""
    made = Tokenizer(models.WordLevel({"one": 0, "two": 1}))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def letters_without_unknown() -> Tokenizer:
    """The characters of ASCII, each a word, and no token for any other."""
    made = Tokenizer(models.WordLevel({chr(code): code for code in range(128)}))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return made


def with_added(made: Tokenizer, content: str, **settings: Any) -> Tokenizer:
    """The same with a token that is found in any text."""
    made.add_tokens([AddedToken(content, normalized=False, **settings)])
    return made
