"""Any tokenizer.json, as the library itself reads it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import (
    END,
    SAMPLE,
    bert_like,
    gpt2_like,
    letters_without_unknown,
    llama_like,
    with_added,
    words_without_unknown,
)
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from gpt_ablate.data import tokenizer_json
from gpt_ablate.data.gpt2_encoding import Gpt2
from gpt_ablate.data.tokenizer_json import HuggingFace
from gpt_ablate.data.tokenizers import Tokenizer, tokenizers
from gpt_ablate.utils.errors import UsageError

MADE: dict[str, Callable[[], Library]] = {
    "gpt2_like": gpt2_like,
    "llama_like": llama_like,
    "llama_like, legacy": lambda: llama_like(legacy=True),
    "bert_like": bert_like,
}
TEXTS = {
    "empty": "",
    "spaces": "  two  \n\n three \t",
    "others": "Zoë, 漢字 <s>🙂</s> [SEP] ▁ <0x0A>",
    "end": f"a{END}b {END}",
    "long": f"{SAMPLE} {END} Zoë 漢字\n" * 5,
}


def of(library: Library) -> HuggingFace:
    return HuggingFace(json.loads(library.to_str()))


def from_file(path: object) -> Tokenizer:
    return tokenizers.build({"name": "file", "path": str(path)}, lambda: iter(["a"]))


def streamed(tokenizer: Tokenizer, text: str) -> str:
    return "".join(tokenizer.stream_text(tokenizer.encode(text)))


@pytest.mark.parametrize("name", MADE)
def test_ids_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    file = tmp_path / "any.json"
    MADE[name]().save(str(file))
    library, tokenizer = Library.from_file(str(file)), from_file(file)
    library.encode_special_tokens = True
    assert tokenizer.vocab_size == library.get_vocab_size()
    for text in TEXTS.values():
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("splitter", "normalizer"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Strip()),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False)]), None),
        (None, None),
    ],
)
def test_a_long_text_is_cut_only_where_tokens_end(
    splitter: object, normalizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(models.BPE())
    library.pre_tokenizer = splitter or pre_tokenizers.ByteLevel(use_regex=False)
    library.train_from_iterator([SAMPLE[:3000]], trainers.BpeTrainer(vocab_size=600, show_progress=False))
    library.pre_tokenizer, library.normalizer = splitter, normalizer
    monkeypatch.setattr(tokenizer_json, "_PIECE", 1)
    assert of(library).encode(f"{SAMPLE[:3000]}\n x") == library.encode(f"{SAMPLE[:3000]}\n x").ids


def test_gpt2s_own_vocabulary_is_that_of_gpt2(gpt2_files: Path) -> None:
    names = [str(gpt2_files / name) for name in ("encoder.json", "vocab.bpe")]
    library = Library(models.BPE.from_file(*names))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_special_tokens([END])
    tokenizer = of(library)
    assert tokenizer.encode(TEXTS["long"]) == Gpt2().encode(TEXTS["long"])
    assert tokenizer.byte_lengths().tolist() == Gpt2().byte_lengths().tolist()
    every = range(Gpt2.vocab_size)
    assert [tokenizer.bytes_of(id) for id in every] == [Gpt2().bytes_of(id) for id in every]
    assert tokenizer.end_of_text == Gpt2.end_of_text


@pytest.mark.parametrize("name", ["llama_like", "bert_like"])
def test_nothing_is_put_around_a_text(name: str) -> None:
    library = MADE[name]()
    whole = library.encode("hello").ids
    assert of(library).encode("hello") in (whole[1:-1], whole[:-1])


def test_truncation_padding_and_dropout_are_off() -> None:
    library, plain = gpt2_like(), of(gpt2_like())
    library.enable_truncation(3)
    library.enable_padding(length=100)
    library.model.dropout = 0.5
    tokenizer = of(library)
    assert tokenizer.encode(SAMPLE) == plain.encode(SAMPLE)
    assert tokenizer.encode("a") == plain.encode("a")
    assert tokenizer.sha256 == plain.sha256


def test_the_hash_is_of_what_decides_ids(tmp_path: Path) -> None:
    content = json.loads(gpt2_like().to_str())
    places = [tmp_path / "a.json", tmp_path / "b.json"]
    places[0].write_text(json.dumps(content))
    places[1].write_bytes(b"\xef\xbb\xbf" + json.dumps(dict(reversed(content.items())), indent=1).encode())
    assert from_file(places[0]).sha256 == from_file(places[1]).sha256
    content["model"]["merges"].reverse()
    assert HuggingFace(content).sha256 != from_file(places[0]).sha256


@pytest.mark.parametrize("name", MADE)
def test_the_text_of_a_special_token_is_ordinary_text(name: str) -> None:
    library = with_added(MADE[name](), "<|user|>", special=True)
    library.encode_special_tokens = False
    special = library.token_to_id("<|user|>")
    assert special in library.encode("a<|user|>b").ids
    assert special not in of(library).encode("a<|user|>b")


@pytest.mark.parametrize("added", ["Zoé", "New York", "    ", "\n\n"])
def test_other_added_tokens_are_found_and_counted(added: str) -> None:
    tokenizer = of(with_added(gpt2_like(), added))
    tokens = tokenizer.encode(f"x{added}y")
    assert tokenizer.bytes_of(tokens[1]) == added.encode()
    assert tokenizer.byte_lengths()[tokens].tolist() == [1, len(added.encode()), 1]
    assert tokenizer.encode(f"x{added}y word " * 10_000).count(tokens[1]) == 10_000


@pytest.mark.parametrize("token", ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]", "<x>"])
def test_end_of_text_goes_by_the_usual_names(token: str) -> None:
    library = Library(models.BPE({"a": 0}, []))
    library.add_special_tokens(["<pad>", token])
    assert of(library).end_of_text == (None if token == "<x>" else 2)


def with_normalizer(normalizer: object) -> Library:
    library = gpt2_like()
    library.normalizer = normalizer
    return library


def characters_alone() -> Library:
    """Merges of characters, without the bytes: a character that it does not know is lost."""
    library = Library(models.BPE({char: id for id, char in enumerate(sorted(set(SAMPLE)))}, []))
    library.decoder = decoders.Fuse()
    return library


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        *((MADE[name], name != "bert_like") for name in MADE),
        (lambda: with_normalizer(normalizers.NFC()), True),
        (lambda: with_normalizer(normalizers.NFKC()), False),
        (lambda: with_normalizer(normalizers.Lowercase()), False),
        (lambda: with_normalizer(normalizers.Strip()), False),
        (lambda: with_normalizer(normalizers.StripAccents()), True),  # of form D alone
        (lambda: with_normalizer(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])), False),
        (characters_alone, False),
        (words_without_unknown, False),
        (letters_without_unknown, False),
    ],
)
def test_bytes_are_counted_where_tokens_keep_the_text(make: Callable[[], Library], kept: bool) -> None:
    assert (of(make()).byte_lengths() is not None) == kept


def test_tokens_that_do_not_keep_the_text_can_be_read() -> None:
    assert streamed(of(bert_like()), "Hello worlds!").strip() == "hello worlds!"
    assert streamed(of(words_without_unknown()), "one  two").strip() == "one two"
    assert streamed(of(with_normalizer(normalizers.Lowercase())), "The Bridge, 漢字") == "the bridge, 漢字"


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot encode this text"):
        of(words_without_unknown()).encode("one three")


def test_ids_that_the_vocabulary_leaves_out_stand_for_nothing() -> None:
    tokenizer = of(Library(models.BPE({"a": 0, "b": 5}, [])))
    assert tokenizer.vocab_size == 6
    assert [tokenizer.bytes_of(id) for id in range(1, 5)] == [b""] * 4


CONTENT = json.loads(gpt2_like().to_str())
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "in JSON"),
    "text": (b"#version: 0.2\n", "in JSON"),
    "compressed": (gzip.compress(b"{}"), "gzip"),
    "a list": (b"[1]", "a list and not an object"),
    "vocab.json": (json.dumps(CONTENT["model"]["vocab"]).encode(), "a vocab.json"),
    "tokenizer_config.json": (b'{"tokenizer_class": "GPT2Tokenizer"}', "a tokenizer_config.json"),
    "config.json": (b'{"model_type": "gpt2", "vocab_size": 3}', "a config.json"),
    "another": (b'{"a": "b"}', "another object"),
    "no vocabulary": (b'{"model": {"type": "BPE"}}', "can read"),
    "a wrong merge": (
        json.dumps(CONTENT | {"model": CONTENT["model"] | {"merges": [["q", "zz"]]}}).encode(),
        "out of vocabulary",
    ),
    "no tokens": (json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}}).encode(), "no tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_tokenizer_json_is_refused(name: str, tmp_path: Path) -> None:
    content, told = BAD[name]
    file = tmp_path / f"{name}.model"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=told) as refused:
        from_file(file)
    (problem,) = refused.value.problems
    assert (problem.key, problem.value, problem.closest) == ("tokenizer.path", str(file), None)


@pytest.mark.parametrize(("place", "told"), [("folder", "directory"), ("folder/vocab.json", "vocab.json")])
def test_the_tokenizer_json_beside_is_named(place: str, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "vocab.json").write_text('{"a": 0}')
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=told) as refused:
        from_file(tmp_path / place)
    assert refused.value.problems[0].closest == str(folder / "tokenizer.json")


@pytest.mark.parametrize("path", ["missing.json", "a\0b", "~nobody-here/tokenizer.json"])
def test_a_path_without_a_file_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.path"):
        from_file(path)


@pytest.mark.parametrize("node", [{}, {"path": None}])
def test_a_path_is_needed(node: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.path=FILE"):
        tokenizers.build({"name": "file", **node}, lambda: iter(["a"]))
