"""The tokenizer against the one tiktoken would download."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_ablate.data import gpt2_encoding
from gpt_ablate.data.gpt2_encoding import VOCAB_SIZE, Gpt2, gpt2

CACHE_NAMES = {  # SHA-1 of the addresses tiktoken would ask
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}
WORD_PARTS = ["'s", "'T", "'ll", "'", " ", "  ", "\n", "\t", "\u00a0", "\u2003", "a", "Zoë", "12½", "漢", "!?", "\x00"]


@pytest.fixture(scope="module")
def reference(gpt2_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tiktoken.Encoding]:
    cache = tmp_path_factory.mktemp("tiktoken")
    for name, digest in CACHE_NAMES.items():
        shutil.copyfile(gpt2_files / name, cache / digest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        yield tiktoken.get_encoding("gpt2")


def sample() -> str:
    return resources.files("gpt_ablate.data").joinpath("assets/sample.txt").read_text("utf-8")


def assert_alike(text: str, reference: tiktoken.Encoding) -> None:
    tokens = Gpt2().encode(text)
    assert tokens == reference.encode_ordinary(text)
    assert gpt2().decode(tokens) == text


def test_vocabulary_is_gpt2s(reference: tiktoken.Encoding) -> None:
    ours = gpt2()
    assert ours.n_vocab == reference.n_vocab == VOCAB_SIZE == 50257
    assert ours.eot_token == reference.eot_token == 50256
    assert ours.special_tokens_set == reference.special_tokens_set
    assert ours.token_byte_values() == reference.token_byte_values()
    every = range(50256)
    assert [ours.decode_single_token_bytes(i) for i in every] == [reference.decode_single_token_bytes(i) for i in every]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*WORD_PARTS, "   ", "\n\n\n", "\x1c", "\u200b", "\u3000"]), max_size=12).map("".join))
def test_text_cut_at_long_white_space_encodes_alike(text: str) -> None:
    every = re.compile(gpt2_encoding._LONG_RUN.pattern.replace("{100000,}", "{1,}"))
    assert every.pattern != gpt2_encoding._LONG_RUN.pattern
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2_encoding, "_LONG_RUN", every)
        assert Gpt2().encode(text) == gpt2().encode_ordinary(text)


def test_a_million_of_one_character_is_encoded() -> None:
    n = 1_000_001
    assert gpt2().decode(Gpt2().encode(f"x{n * ' '}y{n * 'a'}\n")) == f"x{n * ' '}y{n * 'a'}\n"


def test_the_sample_encodes_alike(reference: tiktoken.Encoding) -> None:
    assert_alike(sample(), reference)


def test_the_verdict_encodes_alike(reference: tiktoken.Encoding, verdict: Path) -> None:
    assert_alike(verdict.read_text("utf-8"), reference)


def test_shakespeare_encodes_alike(reference: tiktoken.Encoding, shakespeare: Path) -> None:
    assert_alike(shakespeare.read_text("utf-8"), reference)


def test_gpt2s_own_files_encode_alike(reference: tiktoken.Encoding, gpt2_files: Path) -> None:
    assert_alike((gpt2_files / "vocab.bpe").read_text("utf-8"), reference)
    assert_alike((gpt2_files / "encoder.json").read_text("utf-8"), reference)


@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_any_unicode_encodes_alike(text: str, reference: tiktoken.Encoding) -> None:
    assert_alike(text, reference)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.sampled_from(WORD_PARTS)))
def test_any_split_into_words_is_alike(parts: list[str], reference: tiktoken.Encoding) -> None:
    assert_alike("".join(parts), reference)


def test_known_tokens() -> None:
    assert Gpt2().encode("Every effort moves you") == [6109, 3626, 6100, 345]
    assert Gpt2().encode("") == []


def test_the_name_of_end_of_text_is_ordinary_text() -> None:
    tokens = Gpt2().encode("a<|endoftext|>b")
    assert gpt2().eot_token not in tokens
    assert gpt2().decode(tokens) == "a<|endoftext|>b"


@pytest.mark.parametrize("damage", ["swapped", "truncated", "empty"])
def test_damaged_merges_are_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merges = resources.files("gpt_ablate.data").joinpath("assets/vocab.bpe").read_bytes()
    lines = merges.splitlines(keepends=True)
    lines[100], lines[101] = lines[101], lines[100]
    assets = tmp_path / "assets"
    assets.mkdir()
    monkeypatch.setattr(gpt2_encoding.resources, "files", lambda package: tmp_path)
    (assets / "vocab.bpe").write_bytes(merges)
    read = gpt2_encoding.gpt2.__wrapped__  # not the encoding already read
    assert read().n_vocab == 50257
    (assets / "vocab.bpe").write_bytes({"swapped": b"".join(lines), "truncated": merges[:-9], "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"vocab\.bpe is damaged"):
        read()
