"""Preparing shards: the files depend on texts and arguments alone, not on workers or on how often the work stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from quiet import Quiet

from gpt_ablate import prepare as command
from gpt_ablate.data import chunks, shards
from gpt_ablate.data.chunks import TRAIN, VAL, Division
from gpt_ablate.data.gpt2_encoding import Gpt2
from gpt_ablate.data.preparation import Request, prepare
from gpt_ablate.data.tokenizers import tokenizers
from gpt_ablate.utils.errors import UsageError

WORDS = [
    "Every",
    "effort",
    "moves",
    "you,",
    "wide;\n\tdon't",
    "",
    "1234",
    "stop\u3000—",
    "naïve",
    "漢字",
    "🙂",
    "\n\n\n",
]


def some_text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


FEW = [some_text(seed, 900) for seed in range(8)]
MANY = [some_text(seed, 5) + str(seed % 1500) for seed in range(1800)]


def request(folder: Path, texts: Sequence[str] = FEW, **own: Any) -> Request:
    values: dict[str, Any] = {
        "val": None,
        "train_fraction": 0.9,
        "tokenizer": {"name": "gpt2"},
        "shard_tokens": 1000,
        "workers": 1,
    }
    values |= own
    arguments = {key: values[key] for key in ("train_fraction", "tokenizer", "shard_tokens")}
    return Request(folder, texts, arguments=arguments, **values)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def tokens_of(folder: Path, split: str) -> list[int]:
    return [int(token) for path in sorted(folder.glob(f"{split}_*.bin")) for token in np.fromfile(path, "<u2")]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_CHARACTERS", 500)


@pytest.fixture
def expected(tmp_path: Path, small_chunks: None) -> dict[str, bytes]:
    """What a process that is not stopped writes."""
    prepare(request(tmp_path / "expected"), Quiet())
    return content(tmp_path / "expected")


class Stopped(Exception):
    """The work is stopped here."""


class StoppedAt(Quiet):
    def __init__(self, whole: int, then_chunks: int = 0) -> None:
        self.left, self.chunks = whole, then_chunks

    def whole(self, name: str, tokens: int) -> None:
        self.left -= 1

    def advance(self, read: int, total: int | None, tokens: int) -> None:
        if self.left <= 0:
            self.chunks -= 1
            if self.chunks < 0:
                raise Stopped


def refused(asked: Request) -> list[str]:
    with pytest.raises(UsageError) as error:
        prepare(asked, Quiet())
    return [str(problem) for problem in error.value.problems]


@pytest.mark.parametrize("name", ["gpt2", "bytes", "chars", "bpe"])
def test_a_long_text_has_the_same_tokens_in_parts(name: str, small_chunks: None) -> None:
    text = some_text(1, 3000)
    if name == "bpe":
        pytest.importorskip("tokenizers")
    own = {"vocab_size": 300} if name == "bpe" else {}
    tokenizer = tokenizers.build({"name": name, **own}, lambda: iter([text]))
    parts = list(chunks.cut(text, tokenizer))
    assert len(parts) > 10
    assert "".join(parts) == text
    assert [id for part in parts for id in tokenizer.encode(part)] == tokenizer.encode(text)


class FromTheEnd(Gpt2):
    """Tokens depend on where a text begins, as where a tokenizer puts a space before it."""

    def encode(self, text: str) -> list[int]:
        return super().encode(f" {text}")


def test_a_text_that_cannot_be_cut_stays_whole(small_chunks: None) -> None:
    text = some_text(1, 3000)
    assert list(chunks.cut(text, FromTheEnd())) == [text]


def test_documents_with_end_of_text_between_them(tmp_path: Path, small_chunks: None) -> None:
    index, before = prepare(request(tmp_path / "shards", FEW[:6], val=FEW[6:]), Quiet())
    assert not before
    tokenizer = Gpt2()
    for split, texts in (("train", FEW[:6]), ("val", FEW[6:])):
        ids: list[int] = []
        for text in texts:
            ids += ([tokenizer.end_of_text] if ids else []) + tokenizer.encode(text)
        assert tokens_of(tmp_path / "shards", split) == ids
        assert getattr(index, split).bytes == sum(len(text.encode()) for text in texts)
    assert (index.train.documents, index.val.documents) == (6, 2)
    assert {shard.tokens for shard in index.train.shards[:-1]} == {1000}


def test_few_documents_are_cut_at_a_character() -> None:
    parts = list(Division(FEW, None, 0.61))
    whole = "".join(FEW)
    joined = ["".join(text for split, text in parts if split == which) for which in (TRAIN, VAL)]
    assert joined == [whole[: int(0.61 * len(whole))], whole[int(0.61 * len(whole)) :]]


def test_many_documents_are_divided_by_their_hash() -> None:
    found = dict(Division(MANY, None, 0.8))
    places = {text: split for split, text in Division(MANY, None, 0.8)}
    assert len(list(Division(MANY, None, 0.8))) == len(MANY)
    assert set(found) == {TRAIN, VAL}
    assert 0.75 < sum(split == TRAIN for split in places.values()) / len(places) < 0.85
    assert all(places[text] == split for split, text in Division([*MANY[::-1], "another"], None, 0.8) if text in places)
    wider = {text for split, text in Division(MANY, None, 0.9) if split == TRAIN}
    assert {text for text, split in places.items() if split == TRAIN} < wider


def test_the_source_is_that_of_all_texts() -> None:
    import hashlib

    for texts in (FEW, MANY):
        division = Division(texts, None, 0.5)
        for _ in range(2):
            list(division)
            assert division.sha256 == hashlib.sha256("\0".join(texts).encode()).hexdigest()


@pytest.mark.parametrize("whole", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("then_chunks", [0, 3])
def test_stopped_work_continues(whole: int, then_chunks: int, tmp_path: Path, expected: dict[str, bytes]) -> None:
    folder = tmp_path / "shards"
    with pytest.raises(Stopped):
        prepare(request(folder), StoppedAt(whole, then_chunks))
    assert (folder / shards.UNFINISHED).exists()
    assert not list(folder.glob(".*.tmp"))
    (folder / ".train_00099.bin.tmp").write_bytes(b"left by a process that was killed")
    prepare(request(folder), Quiet())
    assert content(folder) == expected


def test_stopped_work_continues_again_and_again(tmp_path: Path, expected: dict[str, bytes]) -> None:
    stops = 0
    while stops < 20:
        try:
            prepare(request(tmp_path / "shards"), StoppedAt(1))
        except Stopped:
            stops += 1
        else:
            break
    assert 3 < stops < 20
    assert content(tmp_path / "shards") == expected


def test_whole_shards_are_not_encoded_again(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [FEW[seed % 8] + str(seed) for seed in range(40)]
    with pytest.raises(Stopped):
        prepare(request(tmp_path / "shards", texts, val=FEW[:1]), StoppedAt(15))
    encoded: list[str] = []
    plain = chunks.encode
    monkeypatch.setattr(
        chunks, "encode", lambda pieces, *rest: [encoded.extend(each.text for each in pieces), plain(pieces, *rest)][1]
    )
    index, _ = prepare(request(tmp_path / "shards", texts, val=FEW[:1]), Quiet())
    left = (index.train.tokens - 15_000) / index.train.tokens
    assert sum(map(len, encoded)) < (left + 0.02) * sum(map(len, texts)) + len(FEW[0])


def test_the_number_of_workers_changes_nothing(tmp_path: Path, expected: dict[str, bytes]) -> None:
    prepare(request(tmp_path / "two", workers=2), Quiet())
    assert content(tmp_path / "two") == expected


def test_a_finished_folder_is_left_alone(tmp_path: Path, expected: dict[str, bytes]) -> None:
    class Unread(list[str]):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("texts are read")

    (tmp_path / "expected" / shards.UNFINISHED).write_text("left by a process that was killed")
    _, before = prepare(request(tmp_path / "expected", Unread()), Quiet())
    assert before
    assert content(tmp_path / "expected") == expected


def test_other_arguments_are_refused(tmp_path: Path, expected: dict[str, bytes]) -> None:
    (told,) = refused(request(tmp_path / "expected", shard_tokens=999))
    assert "there shard_tokens is 1000, not 999" in told
    with pytest.raises(Stopped):
        prepare(request(tmp_path / "stopped"), StoppedAt(2))
    before = content(tmp_path / "stopped")
    assert refused(request(tmp_path / "stopped", tokenizer={"name": "bytes"}, train_fraction=0.5))[1:]
    assert content(tmp_path / "stopped") == before


def test_work_that_has_no_whole_shard_begins_anew_with_other_arguments(tmp_path: Path, small_chunks: None) -> None:
    with pytest.raises(Stopped):
        prepare(request(tmp_path / "shards"), StoppedAt(0))
    prepare(request(tmp_path / "shards", tokenizer={"name": "bytes"}), Quiet())
    prepare(request(tmp_path / "other", tokenizer={"name": "bytes"}), Quiet())
    assert content(tmp_path / "shards") == content(tmp_path / "other")


def test_texts_that_changed_are_refused(tmp_path: Path, small_chunks: None) -> None:
    with pytest.raises(Stopped):
        prepare(request(tmp_path / "shards"), StoppedAt(3))
    before = content(tmp_path / "shards")
    for texts in ([FEW[0] + "!", *FEW[1:]], FEW[:1]):
        assert "they have changed" in refused(request(tmp_path / "shards", texts))[0]
    assert content(tmp_path / "shards") == before


def test_a_whole_shard_that_changed_is_refused(tmp_path: Path, small_chunks: None) -> None:
    with pytest.raises(Stopped):
        prepare(request(tmp_path / "shards"), StoppedAt(3))
    path = tmp_path / "shards" / "train_00001.bin"
    kept = path.read_bytes()
    for damaged in (kept[:-2], kept[:-1] + b"\0", b""):
        path.write_bytes(damaged)
        assert "train_00001.bin" in refused(request(tmp_path / "shards"))[0]
    path.unlink()
    assert "train_00001.bin" in refused(request(tmp_path / "shards"))[0]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "this one holds thesis.txt" in refused(request(tmp_path))[0]
    assert "a folder, not a file" in refused(request(tmp_path / "thesis.txt"))[0]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        assert "no other process" in refused(request(tmp_path))[0]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"texts": ["one"], "train_fraction": 1e-9}, "that for train has no tokens"),
        ({"texts": ["one"], "val": []}, "that for val has no tokens"),
        ({"texts": ["abc"], "val": ["abcd"], "tokenizer": {"name": "chars"}}, "--tokenizer = 'chars'"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(own: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert told in refused(request(tmp_path / "shards", **own))[0]
    assert not (tmp_path / "shards").exists()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments), "--workers", "1"])
    try:
        command.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for i, text in enumerate(FEW):
        (folder / f"{i}.txt").write_text(text, "utf-8")
    return folder


def test_the_command(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "my shards"
    assert run(monkeypatch, books, "--to", to, "--val", books / "3.txt", "--tokenizer", "bytes") == 0
    assert f"data=tokens data.dir='{to}' tokenizer=own" in capsys.readouterr().out
    index = shards.read_index(to)
    assert (index.train.documents, index.val.bytes) == (7, len(FEW[3].encode()))
    assert run(monkeypatch, books, "--to", to, "--val", books / "3.txt", "--tokenizer", "bytes") == 0
    assert "was finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tokenizer", "gpt3"], "Did you mean 'gpt2'"),
        (["--tokenizer", "absent.json"], "absent.json"),
        (["--vocab-size", "300"], "tokenizer=gpt2 takes no such parameter"),
        (["--workers", "0"], "--workers = 0: 1 or more"),
        (["--shard-tokens", "0"], "--shard-tokens = 0: 1 or more"),
        (["--train-fraction", "1"], "--train-fraction = 1.0"),
        (["--train-fraction", "nan"], "--train-fraction = nan"),
        (["--val", "absent.txt"], "--val = 'absent.txt'"),
        (["--val", "."], "none is left to train on"),
    ],
)
def test_a_command_that_is_refused(
    arguments: list[str],
    told: str,
    books: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(books)
    monkeypatch.setattr(sys, "argv", ["prepare", ".", "--to", str(tmp_path / "to"), *arguments])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(what: Any) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_process_that_is_stopped_leaves_what_the_next_continues(number: int, code: int, tmp_path: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc")
    texts = tmp_path / "texts.jsonl"
    with texts.open("w") as file:
        for seed in range(1500):
            file.write(json.dumps({"text": some_text(seed, 800)}) + "\n")
    common = [sys.executable, "-m", "gpt_ablate.prepare", str(texts), "--shard-tokens", "60000", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    folder = tmp_path / "shards"
    began = subprocess.Popen([*common, "--to", str(folder)], env=environment, start_new_session=True)
    wait_for(lambda: (folder / "train_00002.bin").exists())
    workers = children(began.pid)
    assert len(workers) >= 2
    (os.killpg if number == signal.SIGINT else os.kill)(began.pid, number)
    assert began.wait(60) == code
    wait_for(lambda: not any(map(is_running, workers)))
    whole = json.loads((folder / shards.UNFINISHED).read_text())["places"]["train"]
    assert len(whole) >= 2
    kept = (folder / "train_00000.bin").stat().st_mtime_ns
    subprocess.run([*common, "--to", str(folder)], env=environment, check=True)
    assert (folder / "train_00000.bin").stat().st_mtime_ns == kept
    subprocess.run([*common, "--to", str(tmp_path / "at once")], env=environment, check=True)
    assert content(folder) == content(tmp_path / "at once")
