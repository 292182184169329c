"""What every tokenizer promises, and those without merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import SAMPLE, bert_like, gpt2_like, llama_like

from gpt_ablate.config.paths import CONF
from gpt_ablate.data import tokenizer_files
from gpt_ablate.data.bpe import _trained
from gpt_ablate.data.characters import Bytes
from gpt_ablate.data.gpt2_encoding import Gpt2
from gpt_ablate.data.ids import Ids
from gpt_ablate.data.tokenizer_json import HuggingFace
from gpt_ablate.data.tokenizers import Tokenizer, tokenizers
from gpt_ablate.utils.errors import UsageError

DOCUMENTS = [SAMPLE, "Zoë saw 漢字 and 🙂."]


def chars(*texts: str, unknown: bool = False) -> Tokenizer:
    return tokenizers.build({"name": "chars", "unknown": unknown}, lambda: iter(texts))


ALL: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": Gpt2,
    "bytes": Bytes,
    "chars": lambda: chars(SAMPLE),
    "chars of documents": lambda: chars(*DOCUMENTS),
    "chars and unknown": lambda: chars(*DOCUMENTS, unknown=True),
    "bpe": lambda: HuggingFace(_trained(lambda: iter(DOCUMENTS), 300)),
    "gpt2_like": lambda: HuggingFace(json.loads(gpt2_like().to_str())),
    "llama_like": lambda: HuggingFace(json.loads(llama_like().to_str())),
    "llama_like, legacy": lambda: HuggingFace(json.loads(llama_like(legacy=True).to_str())),
    "bert_like": lambda: HuggingFace(json.loads(bert_like().to_str())),
    "ids": lambda: Ids(300),
    "ids of a data set": lambda: Ids(300, "ab" * 32),
}
OF_ANY_TEXT = ["gpt2", "bytes", "bpe", "gpt2_like"]
PUT_A_SPACE = ["llama_like", "llama_like, legacy"]
made: dict[str, Tokenizer] = {}


def of(name: str) -> Tokenizer:
    if name not in made:
        made[name] = ALL[name]()
    return made[name]


def bytes_of(tokenizer: Tokenizer, tokens: list[int]) -> bytes:
    return b"".join(map(tokenizer.bytes_of, tokens))


@pytest.mark.parametrize("name", OF_ANY_TEXT)
@settings(max_examples=40, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(name: str, text: str) -> None:
    tokenizer = of(name)
    tokens = tokenizer.encode(text)
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    assert bytes_of(tokenizer, tokens) == text.encode()
    assert "".join(tokenizer.stream_text(tokens)) == text
    lengths = tokenizer.byte_lengths()
    assert lengths is not None
    assert lengths[tokens].sum() == len(text.encode()) - (text.count("\0") if name == "bytes" else 0)


@settings(max_examples=40, deadline=None)
@given(text=st.text() | st.text(SAMPLE))
def test_unknown_characters_come_back_as_u_fffd(text: str) -> None:
    known = {*"".join(DOCUMENTS), "\0"}
    tokenizer = of("chars and unknown")
    expected = "".join(char if char in known else "\ufffd" for char in text)
    assert "".join(tokenizer.stream_text(tokenizer.encode(text))) == expected


@pytest.mark.parametrize("name", PUT_A_SPACE)
@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="▁")))
def test_any_text_comes_back_after_a_space(name: str, text: str) -> None:
    found = bytes_of(of(name), of(name).encode(text)).decode()
    assert found == text or found == " " + text


@pytest.mark.parametrize("name", [*OF_ANY_TEXT, *PUT_A_SPACE, "chars", "chars of documents"])
def test_lengths_count_the_bytes_of_a_text(name: str) -> None:
    tokenizer = of(name)
    lengths = tokenizer.byte_lengths()
    assert lengths is not None
    assert lengths.shape == (tokenizer.vocab_size,)
    counted = lengths[tokenizer.encode(SAMPLE)].sum()
    assert counted == len(SAMPLE.encode()) + (name in PUT_A_SPACE)
    if tokenizer.end_of_text is not None:
        assert lengths[tokenizer.end_of_text] == 0


@pytest.mark.parametrize("name", ["chars and unknown", "bert_like", "ids"])
def test_tokens_that_do_not_keep_the_text_have_no_lengths(name: str) -> None:
    assert of(name).byte_lengths() is None


@pytest.mark.parametrize("name", ["gpt2", "bytes", "bpe", *PUT_A_SPACE])
def test_end_of_text_is_in_no_text(name: str) -> None:
    tokens = of(name).encode("a<|endoftext|>b </s> <s>c</s>")
    assert of(name).end_of_text is not None
    assert of(name).end_of_text not in tokens


@pytest.mark.parametrize("name", ["bytes", "chars", "bpe", "llama_like"])
def test_half_of_a_surrogate_pair_has_no_tokens(name: str) -> None:
    with pytest.raises(ValueError, match=r"U\+DC80"):
        of(name).encode("a\udc80")


@pytest.mark.parametrize("name", ALL)
def test_the_saved_tokenizer_is_the_same(name: str, tmp_path: Path) -> None:
    tokenizer, file = of(name), tmp_path / "tokenizer.json"
    tokenizer_files.save(tokenizer, file)
    loaded = tokenizer_files.load(file)
    assert type(loaded) is type(tokenizer)
    text = "1 2 299" if name.startswith("ids") else SAMPLE
    assert loaded.encode(text) == tokenizer.encode(text)
    np.testing.assert_equal(loaded.byte_lengths(), tokenizer.byte_lengths())
    for field in ("vocab_size", "sha256", "end_of_text"):
        assert getattr(loaded, field) == getattr(tokenizer, field)
    assert [loaded.bytes_of(id) for id in range(7)] == [tokenizer.bytes_of(id) for id in range(7)]


def test_each_tokenizer_has_a_hash_of_its_own() -> None:
    others = [chars(SAMPLE, unknown=True), chars(SAMPLE[:20]), Ids(301)]
    hashes = [of(name).sha256 for name in ALL] + [tokenizer.sha256 for tokenizer in others]
    assert len(set(hashes)) == len(hashes)
    assert of("ids of a data set").sha256 == "ab" * 32


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a list": lambda content: [content],
    "no name": lambda content: {"characters": "ab"},
    "another name": lambda content: content | {"name": "char"},
    "no characters": lambda content: {key: value for key, value in content.items() if key != "characters"},
    "characters in a list": lambda content: content | {"characters": list(content["characters"])},
    "a number": lambda content: content | {"characters": 3},
    "not sorted": lambda content: content | {"characters": content["characters"][::-1]},
    "one more key": lambda content: content | {"more": 1},
    "no end-of-text": lambda content: content | {"end_of_text": True},
    "merges of another": lambda content: {"name": "gpt2", "sha256": "0" * 64},
    "half an id": lambda content: {"name": "none", "vocab_size": 1.5, "sha256": ""},
    "a model without a vocabulary": lambda content: {"model": {"type": "BPE"}},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(DAMAGES[damage](of("chars").content())))
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        tokenizer_files.load(file)


@pytest.mark.parametrize("content", [None, "", '{"name": "byt', "\0"])
def test_a_file_that_is_no_json_is_refused(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match="a JSON file that can be read"):
        tokenizer_files.load(file)


def test_characters_are_those_of_the_training_split() -> None:
    tokenizer = chars("cab\n")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (4, None)
    assert tokenizer.encode("\nabc") == [0, 1, 2, 3]


def test_nul_stands_between_documents() -> None:
    tokenizer = chars("b", "a")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (3, 0)
    assert tokenizer.encode("ab\0") == [1, 2, 0]


def test_the_unknown_token_is_one_more() -> None:
    tokenizer = chars("ab\ufffd", unknown=True)
    assert tokenizer.encode("xa\ufffdy") == [3, 0, 2, 3]


def test_parts_of_a_long_text_are_encoded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of("chars").encode(SAMPLE)
    monkeypatch.setattr("gpt_ablate.data.characters._PART", 7)
    assert chars(SAMPLE).sha256 == of("chars").sha256
    assert of("chars").encode(SAMPLE) == whole
    with pytest.raises(ValueError, match="2 different characters"):
        of("chars").encode(f"{SAMPLE}ñ{SAMPLE}ß")


def test_other_characters_are_named() -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.unknown=true") as refused:
        chars("abc").encode("a\u00e9b" + "".join(map(chr, range(0x370, 0x378))) + "\u200b\ud800xyz")
    told = str(refused.value)
    assert "'x' (U+0078 LATIN SMALL LETTER X)" in told
    assert "'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE)" in told
    assert told.startswith("14 different characters")
    assert "and 4 more" in told
    assert told.count("U+") == 10
    told.encode()  # can be printed


def test_half_a_pair_in_the_training_split_is_refused() -> None:
    with pytest.raises(UsageError, match="surrogate"):
        chars("a\ud800")


def test_ids_are_numbers_with_spaces() -> None:
    tokenizer = Ids(18)
    assert tokenizer.encode(" 3 17\n0 ") == [3, 17, 0]
    assert list(tokenizer.stream_text([3, 17, 0])) == ["3", " 17", " 0"]
    assert tokenizer.bytes_of(17) == b"17"
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("text", ["18", "-1", "3,4", "x", "1.0", "٣", "1_0", "9" * 5000])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="from 0 to 17") as refused:
        Ids(18).encode(f"3 {text}")
    assert len(str(refused.value)) < 200


def test_a_text_needs_a_tokenizer() -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.name = 'none'.*bpe, bytes, chars, file, gpt2"):
        tokenizers.build({"name": "none"}, lambda: iter(["a"]))


def test_every_option_has_a_yaml_with_its_parameters() -> None:
    nodes = {file.stem: yaml.safe_load(file.read_text()) for file in (CONF / "tokenizer").glob("*.yaml")}
    assert set(nodes) == set(tokenizers.builders)
    for option, node in nodes.items():
        assert node["name"] == option
        assert set(node) - {"name"} == set(tokenizers.parameters(option))
        assert tokenizers.check(node) == []
