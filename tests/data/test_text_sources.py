"""Data sets of texts: how they are split, what is hashed, and which splits are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt_ablate.config.paths import CONF
from gpt_ablate.data import held_out, named_sets, text_sources
from gpt_ablate.data.corpus import Corpus, DataContext, sources
from gpt_ablate.data.documents import Document, Documents
from gpt_ablate.data.named_sets import NamedText
from gpt_ablate.data.tokenizers import Texts, Tokenizer
from gpt_ablate.utils.errors import UsageError

END = 256


class Bytes(Tokenizer):
    """Each byte of UTF-8 is a token."""

    vocab_size, sha256, end_of_text = 257, "bytes", END

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def bytes_of(self, token: int) -> bytes:
        return b"" if token == END else bytes([token])

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        return np.array([1] * 256 + [0])

    def content(self) -> dict[str, Any]:
        return {}


trained_on: list[list[str]] = []


def make_tokenizer(texts: Texts) -> Tokenizer:
    trained_on.append(list(texts()))
    return Bytes()


def build(name: str, **values: Any) -> Corpus:
    context = DataContext(context_length=8, stride=8, replacement=False, make_tokenizer=make_tokenizer)
    return sources.build({"name": name, **values}, context)


def documents_of(split: Any) -> list[str]:
    """The texts between the tokens that end a text."""
    tokens = split.tokens.tolist()
    ends = [-1, *(i for i, token in enumerate(tokens) if token == END), len(tokens)]
    return [bytes(tokens[a + 1 : b]).decode() for a, b in pairwise(ends)]


def splits_of(name: str, **values: Any) -> tuple[list[str], list[str]]:
    corpus = build(name, **values)
    return documents_of(corpus.train), documents_of(corpus.val)


def refused(name: str, key: str, **values: Any) -> str:
    with pytest.raises(UsageError) as error:
        build(name, **values)
    assert {problem.key for problem in error.value.problems} == {key}
    return str(error.value)


LONG = "".join(f"sentence {number} of a long text. " for number in range(20))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with texts in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    (tmp_path / "long.md").write_text(LONG)
    (tmp_path / "rows.jsonl").write_text('{"text": "row 1"}\n{"text": "row 2"}\n')
    return tmp_path


@pytest.fixture
def trio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A set of three books instead of the classics, in $GPT_ABLATE_DATA; the texts."""
    contents = tuple(f"The book of {name}" for name in ("One", "Two", "Three"))
    (tmp_path / "data").mkdir()
    texts = []
    for number, content in enumerate(contents):
        (tmp_path / "data" / f"{number}-0.txt").write_text(content)
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        texts.append(NamedText("classics", f"{number}-0.txt", sha256, "", "", "Anyone", content.split()[-1]))
    known = named_sets.text_sets() | {"classics": tuple(texts)}
    monkeypatch.setattr(named_sets, "text_sets", lambda: known)
    monkeypatch.setenv("GPT_ABLATE_DATA", str(tmp_path / "data"))
    return contents


@given(st.lists(st.text("ab", max_size=6), max_size=5), st.integers(0, 30))
def test_a_split_by_characters_loses_none_and_ends_texts_between_documents(texts: list[str], cut: int) -> None:
    documents = Documents([[Document("x", text) for text in texts]])
    train = list(text_sources._pieces(documents, 0, cut))
    val = list(text_sources._pieces(documents, cut, sum(map(len, texts))))
    assert "".join(train) == "".join(texts)[:cut]
    assert "".join(val) == "".join(texts)[cut:]
    joined = len(train) + len(val) - sum(map(bool, texts))
    ends = {sum(map(len, texts[:i])) for i in range(len(texts) + 1)}
    assert "" not in train + val
    assert joined == (0 if cut in ends or cut > max(ends) else 1)


def test_files_are_split_by_a_fraction_of_their_characters(folder: Path) -> None:
    corpus = build("text", path=["a.txt", "b.txt", "rows.jsonl"], train_fraction=0.5)
    assert documents_of(corpus.train) == ["text a", "text b"[:5]]
    assert documents_of(corpus.val) == ["b", "row 1", "row 2"]
    assert trained_on[-1] == documents_of(corpus.train)
    assert corpus.sha256 == hashlib.sha256(b"text a\0text b\0row 1\0row 2").hexdigest()
    assert corpus.stored_sha256 is None


def test_a_split_by_a_fraction_has_the_hash_of_the_files_too(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"text\r\na")
    corpus = build("text", path=["a.txt", "b.txt"])
    assert corpus.sha256 == hashlib.sha256(b"text\na\0text b").hexdigest()
    assert corpus.stored_sha256 == hashlib.sha256(b"text\r\na\0text b").hexdigest()


@pytest.mark.parametrize(
    ("val", "train", "held"),
    [
        ("b.txt", ["text a", "text c"], ["text b"]),
        (["b.txt", "a.txt"], ["text c"], ["text b", "text a"]),
        ("[ab].txt", ["text c"], ["text a", "text b"]),
        ("./b.txt", ["text a", "text c"], ["text b"]),
        ("rows.jsonl", ["text a", "text b", "text c"], ["row 1", "row 2"]),
        (["long.md", "c.txt"], ["text a", "text b"], [LONG, "text c"]),
    ],
)
def test_files_that_are_held_out_are_not_trained_on(
    val: str | list[str], train: list[str], held: list[str], folder: Path
) -> None:
    assert splits_of("text", path="*.txt", val=val) == (train, held)
    assert trained_on[-1] == train


def test_a_named_set_can_be_held_out_from_files(folder: Path) -> None:
    train, held = splits_of("text", path="*.txt", val="sample")
    assert len(train) == 3
    assert held[0].startswith("A Penny Over")


def test_files_can_be_held_out_from_a_named_set(folder: Path) -> None:
    train, held = splits_of("sample", val=["*.txt", "rows.jsonl"])
    assert train[0].startswith("A Penny Over")
    assert held == ["text a", "text b", "text c", "row 1", "row 2"]


@pytest.mark.parametrize("val", ["Two", ["two"], ["1-0.txt"], "1-0"])
def test_books_of_a_set_are_held_out_by_title_or_file(val: str | list[str], trio: tuple[str, ...]) -> None:
    assert splits_of("classics", val=val) == ([trio[0], trio[2]], [trio[1]])


def test_the_order_of_what_is_held_out_is_as_given(trio: tuple[str, ...], folder: Path) -> None:
    assert splits_of("classics", val=["Three", "a.txt", "One"]) == ([trio[1]], [trio[2], "text a", trio[0]])


def test_a_set_of_books_can_be_split_by_characters(trio: tuple[str, ...]) -> None:
    assert splits_of("classics", train_fraction=0.5) == ([trio[0], trio[1][:8]], [trio[1][8:], trio[2]])


def test_where_the_cut_is_changes_the_hash_and_the_fraction_does_not(trio: tuple[str, ...]) -> None:
    values = [{"val": name} for name in ("One", "Two", ["One", "Two"], ["Two", "One"])] + [{}]
    assert len({build("classics", **each).sha256 for each in values}) == 5
    assert len({build("classics", val="One", train_fraction=f).sha256 for f in (0.1, 0.9)}) == 1
    assert build("classics", val="One").stored_sha256 is None


@pytest.mark.parametrize(
    ("val", "told"),
    [
        ("Fore", "One, Two, Three"),
        (["Tow"], "Did you mean 'Two'?"),
        ("wharten", "Did you mean 'wharton'?"),
        (["absent.txt", "absent*.txt"], "absent*.txt"),
        ([], "at least one text"),
        ("", "the path of a file"),
        (["One", "0-0.txt"], "no other entry"),
        (["a.txt", "[ab].txt"], "no other entry"),
        (["One", "Two", "Three"], "none is left to train on"),
        ("classics", "none is left to train on"),
        ("data/1-0.txt", "1-0.txt too"),
    ],
)
def test_splits_that_cannot_be_made(val: str | list[str], told: str, trio: tuple[str, ...], folder: Path) -> None:
    assert told in refused("classics", "data.val", val=val)


def test_all_files_held_out(folder: Path) -> None:
    assert "none is left" in refused("text", "data.val", path="*.txt", val=["a.txt", "b.txt", "c.txt"])


@pytest.mark.parametrize(
    ("trained", "held", "told"),
    [
        ("text a\n", "text  a", "val.txt is the same text as train.txt"),
        (f"Before. {LONG} After.", LONG, "val.txt is a part of train.txt"),
        (f"Before. {LONG.replace(' ', chr(10))} After.", LONG, "val.txt is a part of train.txt"),
        (LONG, f"Before. {LONG} After.", "train.txt is a part of val.txt"),
        ("A short text stands in another.", "text", None),
        (f"{LONG}Another end.", f"{LONG}An end.", None),
    ],
)
def test_held_out_texts_that_are_trained_on(trained: str, held: str, told: str | None, folder: Path) -> None:
    (folder / "train.txt").write_text(trained)
    (folder / "val.txt").write_text(held)
    values = {"path": ["b.txt", "train.txt"], "val": ["c.txt", "val.txt"]}
    if told is None:
        assert build("text", **values)
    else:
        assert told in refused("text", "data.val", **values)


def test_many_held_out_texts_that_are_trained_on(folder: Path) -> None:
    for name in ("train", "val"):
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(50)))
    message = refused("text", "data.val", path="train.jsonl", val="val.jsonl")
    assert "val.jsonl:1 is the same text as " in message
    assert "45 more" in message


def test_splits_too_large_to_look_for_parts_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "whole.txt").write_text(f"{LONG} And more.")
    values = {"path": ["a.txt", "whole.txt"], "val": "long.md"}
    assert "is a part of" in refused("text", "data.val", **values)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(held_out, "_WORK", 100)
    build("text", **values)
    assert "too large" in capsys.readouterr().err
    (folder / "a.txt").write_text(LONG)
    assert "is the same text as" in refused("text", "data.val", **values)


def test_a_column_that_nothing_has(folder: Path) -> None:
    assert "no columns" in refused("text", "data.column", path="*.txt", column="body")
    assert "line 1 has 'text'" in refused("text", "data.path", path="rows.jsonl", column="body")
    assert "rows.jsonl" in refused("text", "data.val", path="*.txt", val="rows.jsonl", column="body")


def node_of(option: str) -> dict[str, Any]:
    """What the YAML gives to the builder."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / "data" / f"{option}.yaml"))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items() if key not in ("batch_size", "stride", "replacement")}


@pytest.mark.parametrize("option", ["text", "sample", "verdict", "shakespeare", "wharton", "classics"])
def test_a_yaml_sets_every_parameter(option: str) -> None:
    node = node_of(option)
    assert node["name"] == option
    assert set(node) - {"name"} == set(sources.parameters(option))
    assert sources.check(node | ({"path": "x"} if option == "text" else {})) == []


class Seen(DataContext):
    """Gives the texts themselves: encoding whole books takes long."""

    def of_texts(self, train: Texts, val: Texts, sha256: str, stored_sha256: str | None = None) -> Any:
        return list(train()), list(val())


@pytest.fixture
def defaults(books: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[list[str], list[str]]]:
    """The texts of both splits of an option, as its YAML has it, from $GPT_ABLATE_DATA."""
    monkeypatch.setenv("GPT_ABLATE_DATA", str(books.parent))

    def make(option: str) -> tuple[list[str], list[str]]:
        return sources.build(node_of(option), Seen(8, 8, False, make_tokenizer))

    return make


def test_wharton_is_evaluated_on_the_verdict(
    defaults: Callable[[str], tuple[list[str], list[str]]], verdict: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, held = defaults("wharton")
    assert held == [verdict.read_text("utf-8")]
    assert len(train) == 8
    assert capsys.readouterr().err == ""  # both splits were searched for parts of the other


@pytest.mark.slow
def test_of_the_classics_two_books_are_held_out(
    defaults: Callable[[str], tuple[list[str], list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    train, held = defaults("classics")
    assert len(train) == 6
    assert [len(text) for text in held] == [1794735, 1936851]
    assert capsys.readouterr().err == ""


def test_no_author_of_the_held_out_classics_is_trained_on() -> None:
    classics, val = named_sets.text_sets()["classics"], node_of("classics")["val"]
    authors = {title: {text.author for text in classics if (text.title in val) == title} for title in (True, False)}
    assert len(authors[True]) == 2
    assert not authors[True] & authors[False]
