"""Data that cannot be trained on: refused before training, with the key to change."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pooch
import pytest

from gpt_ablate.config.schema import Config
from gpt_ablate.data import loading
from gpt_ablate.utils.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty user cache, no $GPT_ABLATE_DATA, no network, nothing kept from other tests."""

    def no_network(*arguments: object, **keywords: object) -> None:
        raise socket.gaierror("no network in this test")

    folder = tmp_path / "user-cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder / project)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.delenv("GPT_ABLATE_DATA", raising=False)
    loading._corpus.cache_clear()
    yield folder
    loading._corpus.cache_clear()


def refused(config: Config, *keys: str) -> str:
    """Load, expect problems with exactly `keys`, return the message."""
    with pytest.raises(UsageError) as error:
        loading.load(config)
    assert [problem.key for problem in error.value.problems] == list(keys)
    message = str(error.value)
    assert all(key in message for key in keys)
    return message


@pytest.fixture
def text_config(tmp_path: Path, with_data: Callable[..., Config]) -> Callable[..., Config]:
    """The config for a file of the given bytes."""

    def make(content: bytes, **values: object) -> Config:
        (tmp_path / "mine.txt").write_bytes(content)
        return with_data("text", path=str(tmp_path / "mine.txt"), **values)

    return make


@pytest.fixture
def token_config(tmp_path: Path, with_data: Callable[..., Config]) -> Callable[..., Config]:
    """The config for train.bin and val.bin of the given bytes; None leaves a file out."""

    def make(train: bytes | None, val: bytes | None) -> Config:
        for name, content in (("train.bin", train), ("val.bin", val)):
            if content is not None:
                (tmp_path / name).write_bytes(content)
        return with_data("tokens", dir=str(tmp_path))

    return make


def test_a_text_too_short_for_its_validation_split(text_config: Callable[..., Config]) -> None:
    message = refused(text_config(b"one two " * 30), "model.context_length")
    assert "validation split has 7 tokens" in message
    assert "9" in message


def test_a_text_too_short_for_one_batch(text_config: Callable[..., Config]) -> None:
    message = refused(text_config(b"one two " * 60, batch_size=200), "data.batch_size")
    assert "13 windows" in message


def test_both_splits_too_short_are_reported_together(text_config: Callable[..., Config]) -> None:
    refused(text_config(b"a"), "model.context_length", "data.batch_size")


def test_a_text_just_long_enough_is_taken(text_config: Callable[..., Config]) -> None:
    # 17 tokens make two windows of 8 and their targets, 9 make one.
    enough = loading.load(text_config(b" a" * 26, train_fraction=17 / 26 + 1e-9))
    assert (enough.train.n_windows, enough.val.n_windows) == (2, 1)
    refused(text_config(b" a" * 25, train_fraction=17 / 25 + 1e-9), "model.context_length")


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n"])
def test_an_empty_text(content: bytes, text_config: Callable[..., Config]) -> None:
    message = refused(text_config(content), "data.path")
    assert "mine.txt" in message
    assert "empty" in message


def test_bytes_that_are_not_utf8(text_config: Callable[..., Config]) -> None:
    message = refused(text_config(b"0123456789" * 50 + "é".encode("latin-1") + b" more"), "data.path")
    assert "mine.txt" in message
    assert "UTF-8" in message
    assert "byte 500" in message


def test_the_bad_one_of_several_texts_is_named(tmp_path: Path, with_data: Callable[..., Config]) -> None:
    (tmp_path / "good.txt").write_text("one two " * 60)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    paths = [str(tmp_path / "good.txt"), str(tmp_path / "bad.txt")]
    message = refused(with_data("text", path=paths), "data.path")
    assert "bad.txt" in message
    assert "good.txt" not in message


@pytest.mark.parametrize(("path", "reason"), [("absent.txt", "No such file"), ("", "a folder with .txt")])
def test_a_text_that_cannot_be_read(path: str, reason: str, tmp_path: Path, with_data: Callable[..., Config]) -> None:
    message = refused(with_data("text", path=str(tmp_path / path)), "data.path")
    assert str(tmp_path) in message
    assert reason in message


GOOD = np.arange(40, dtype="<u2").tobytes()


def test_good_token_files_are_taken(token_config: Callable[..., Config]) -> None:
    assert loading.load(token_config(GOOD, GOOD)).train.n_windows == 4


@pytest.mark.parametrize("place", ["train.bin", "val.bin"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "0 bytes"),
        (GOOD + b"\0", "81 bytes"),
        (GOOD + np.array([50257], dtype="<u2").tobytes(), "below 50257, found 50257"),
    ],
    ids=["missing", "empty", "odd", "outside the vocabulary"],
)
def test_a_bad_token_file(content: bytes | None, reason: str, place: str, token_config: Callable[..., Config]) -> None:
    files = (content, GOOD) if place == "train.bin" else (GOOD, content)
    message = refused(token_config(*files), "data.dir")
    assert place in message
    assert reason in message


def test_the_highest_token_is_taken(token_config: Callable[..., Config]) -> None:
    top = np.full(40, 50256, dtype="<u2").tobytes()
    assert loading.load(token_config(top, top)).val.tokens.max() == 50256


def test_token_files_too_short(token_config: Callable[..., Config]) -> None:
    refused(token_config(GOOD, GOOD[:16]), "model.context_length")


def test_another_text_under_the_verdicts_name(tmp_path: Path, with_data: Callable[..., Config]) -> None:
    (tmp_path / "the-verdict.txt").write_text("I had always thought Jack Gisburn rather a cheap genius " * 40)
    message = refused(with_data("verdict", dir=str(tmp_path)), "data.dir")
    assert "SHA-256" in message
    assert "data=text" in message


def test_another_text_under_the_verdicts_name_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_data: Callable[..., Config]
) -> None:
    (tmp_path / "the-verdict.txt").write_text("I had always thought")
    monkeypatch.setenv("GPT_ABLATE_DATA", str(tmp_path))
    refused(with_data("verdict"), "$GPT_ABLATE_DATA")


def test_no_verdict_anywhere_names_the_three_remedies(with_data: Callable[..., Config]) -> None:
    message = refused(with_data("verdict"), "data")
    assert "network" in message
    assert "data.dir=" in message
    assert "GPT_ABLATE_DATA=" in message
    assert "data=sample" in message


def test_a_download_with_another_hash_is_refused(
    monkeypatch: pytest.MonkeyPatch, cache: Path, with_data: Callable[..., Config]
) -> None:
    def download(self: object, url: str, output_file: str, *rest: object, **keywords: object) -> None:
        Path(output_file).write_text("Not Found")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    refused(with_data("verdict"), "data")
    assert not list(cache.rglob("the-verdict.txt"))


def test_the_verdict_is_found_in_each_place(
    tmp_path: Path, verdict: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, with_data: Callable[..., Config]
) -> None:
    def copy_to(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "the-verdict.txt").write_bytes(verdict.read_bytes())
        return folder

    def load(folder: Path | None = None) -> int:
        loading._corpus.cache_clear()
        return len(loading.load(with_data("verdict", dir=folder and str(folder))).train.tokens)

    named, environment = copy_to(tmp_path / "named"), copy_to(tmp_path / "environment")
    assert load(named) == 4612
    monkeypatch.setenv("GPT_ABLATE_DATA", str(environment))
    assert load() == 4612
    assert load(tmp_path) == 4612  # no such file there: the next place
    monkeypatch.delenv("GPT_ABLATE_DATA")
    refused(with_data("verdict"), "data")
    copy_to(cache / "gpt_ablate")
    assert load() == 4612
