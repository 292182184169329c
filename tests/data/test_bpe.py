"""Merges trained on the training split: as the library trains them, the same everywhere, and kept."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import END, SAMPLE, gpt2_like
from tokenizers import Tokenizer as Library

from gpt_ablate.data import bpe, tokenizer_files, tokenizer_json
from gpt_ablate.data.tokenizer_json import HuggingFace
from gpt_ablate.data.tokenizers import Tokenizer, tokenizers
from gpt_ablate.utils.errors import UsageError

PARTS = ["'s", "'", " ", "  ", "\n", "\t", "\u00a0", "\u2003", "\x1c", "\x85", "a", "Zoë", "12½", "漢", "!?", "\0", END]
PROCESS = """
import os, sys
from gpt_ablate.data import bpe
from gpt_ablate.data.tokenizers import tokenizers

tokenizer = tokenizers.build({"name": "bpe", "vocab_size": 600}, lambda: iter([sys.argv[1], sys.argv[1][:5000]]))
ids = tokenizer.encode(sys.argv[1] * 3)
if os.fork() == 0:
    os._exit(tokenizer.encode(sys.argv[1] * 3) != ids)
assert os.wait()[1] == 0
print(len(ids), tokenizer.sha256)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bpe, "user_cache", lambda: tmp_path)
    return tmp_path / "tokenizers"


def trained(vocab_size: int = 400, *texts: str) -> Tokenizer:
    return tokenizers.build({"name": "bpe", "vocab_size": vocab_size}, lambda: iter(texts or [SAMPLE]))


@pytest.fixture(scope="module")
def tokenizer() -> HuggingFace:
    """One that merges all sorts of spaces and signs."""
    draws = random.Random(0)
    soup = "".join(draws.choices([*PARTS, " ", " ", "!?"], k=5000))
    return HuggingFace(bpe._trained(lambda: iter([SAMPLE, soup]), 900))


@pytest.fixture(scope="module")
def reference(tokenizer: HuggingFace) -> Callable[[str], list[int]]:
    library = Library.from_str(json.dumps(tokenizer.content()))
    library.encode_special_tokens = True
    return lambda text: library.encode(text, add_special_tokens=False).ids


def test_the_vocabulary_is_that_of_the_library_on_whole_texts() -> None:
    assert trained(400).content()["model"] == json.loads(gpt2_like(400).to_str())["model"]


def test_a_long_text_is_encoded_as_in_one_piece(tokenizer: HuggingFace, reference: Callable[[str], list[int]]) -> None:
    text = f"{SAMPLE} {END}\n\n" * 5
    assert len(text) > 2 * tokenizer_json._PIECE
    assert tokenizer.encode(text) == reference(text)


@settings(max_examples=80, deadline=None)
@given(text=st.lists(st.sampled_from(PARTS), max_size=30).map("".join))
def test_pieces_of_words_are_encoded_as_one(
    text: str, tokenizer: HuggingFace, reference: Callable[[str], list[int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_json, "_PIECE", 1)
        pieces = list(tokenizer_json.words_of(text))
        assert "".join(pieces) == text
        assert tokenizer.encode(text) == reference(text)


def test_the_pieces_of_a_text_are_short() -> None:
    assert max(map(len, tokenizer_json.words_of(SAMPLE * 20))) < tokenizer_json._PIECE + 100
    assert len(list(tokenizer_json.words_of(SAMPLE * 20))) > 5


def test_end_of_text_in_a_text_is_ordinary_text() -> None:
    tokenizer = trained()
    tokens = tokenizer.encode(f"a{END}b")
    assert tokenizer.end_of_text == 0
    assert 0 not in tokens
    assert b"".join(map(tokenizer.bytes_of, tokens)).decode() == f"a{END}b"


def test_processes_make_the_same_tokenizer_and_fork_in_silence(tmp_path: Path) -> None:
    settings = [
        {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"},
        {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "4", "TOKENIZERS_PARALLELISM": "true"},
    ]
    told = set()
    for number, each in enumerate(settings):
        plain = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
        environment = plain | each | {"XDG_CACHE_HOME": str(tmp_path / str(number))}
        command = [sys.executable, "-c", PROCESS, SAMPLE]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        told.add(done.stdout)
    assert len(told) == 1


@pytest.mark.parametrize(("before", "during"), [(None, "false"), ("true", "true")])
def test_the_library_uses_no_threads_of_its_own_unless_told_to(
    before: str | None, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, seen = "TOKENIZERS_PARALLELISM", []
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)

    def seen_texts() -> Iterator[str]:
        seen.append(os.environ.get(name))
        yield SAMPLE

    encode = HuggingFace._encode
    monkeypatch.setattr(
        HuggingFace, "_encode", lambda self, text: seen.append(os.environ.get(name)) or encode(self, text)
    )
    tokenizers.build({"name": "bpe", "vocab_size": 300}, seen_texts).encode("a")
    assert seen == [before, during, during]  # the hash of the texts, the training, the text
    assert os.environ.get(name) == before


def no_training(*arguments: object) -> None:
    raise AssertionError("trained again")


def test_it_is_trained_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained()
    monkeypatch.setattr(bpe, "_trained", no_training)
    assert trained().sha256 == first.sha256
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("other", ["text", "documents", "vocab_size", "version"])
def test_another_request_is_trained(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(300, SAMPLE)
    monkeypatch.setattr(bpe, "_trained", no_training)
    if other == "version":
        monkeypatch.setattr("tokenizers.__version__", "0.0")
    texts = {"text": [SAMPLE + "."], "documents": [SAMPLE[:99], SAMPLE[99:]]}.get(other, [SAMPLE])
    with pytest.raises(AssertionError, match="trained again"):
        trained(301 if other == "vocab_size" else 300, *texts)


@pytest.mark.parametrize("damage", ["cut", "empty", "merges", "no tokenizer", "a list"])
def test_a_damaged_cache_is_trained_again(damage: str, cache: Path) -> None:
    first = trained()
    (file,) = cache.iterdir()
    whole = file.read_text()
    kept = json.loads(whole)
    kept["tokenizer"]["model"]["merges"].reverse()
    damaged = {"cut": whole[:-9], "empty": "", "merges": json.dumps(kept), "no tokenizer": "{}", "a list": "[1]"}
    file.write_text(damaged[damage])
    assert trained().encode(SAMPLE) == first.encode(SAMPLE)
    assert json.loads(file.read_text()) == json.loads(whole)


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    assert trained().vocab_size == 400


def test_fewer_merges_than_asked_for_are_counted() -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.vocab_size = 1024: at most 261: .* 4 merges"):
        trained(1024, "abcd abcd abcd")
    assert trained(261, "abcd abcd abcd").encode(" abcd") == [260]
    with pytest.raises(UsageError, match="at most 261"):
        trained(10**15, "abcd abcd abcd")


@pytest.mark.parametrize("vocab_size", [256, 0, -1, "1024", 300.0])
def test_a_vocabulary_without_room_for_the_bytes_is_refused(vocab_size: object) -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.vocab_size"):
        tokenizers.build({"name": "bpe", "vocab_size": vocab_size}, lambda: iter([SAMPLE]))


def test_half_of_a_surrogate_pair_in_the_training_split_is_refused() -> None:
    with pytest.raises(UsageError, match=r"U\+D800"):
        trained(300, "a\ud800")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    tokenizer_files.save(trained(), file)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for use in (trained, lambda: tokenizers.build({"name": "file", "path": str(file)}, lambda: iter(["a"]))):
        with pytest.raises(UsageError, match=r"pip install 'gpt_ablate\[tokenizers\]'"):
            use()
    with pytest.raises(UsageError, match=r"^tokenizer\.name = 'file': the package tokenizers is not installed"):
        tokenizer_files.load(file)
