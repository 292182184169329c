"""Token shards: the splits of a folder as arrays; what is wrong with a folder is told before anything is read of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quiet import Quiet

from gpt_ablate.data import shards, token_sources
from gpt_ablate.data.corpus import Corpus, DataContext
from gpt_ablate.data.preparation import Request, prepare
from gpt_ablate.data.tokenizers import Tokenizer, tokenizers
from gpt_ablate.utils.errors import UsageError

TEXTS = [f"Chapter {i}. Every effort moves you, and {i * 7919 % 1013} of them move the world.\n" for i in range(60)]


def texts_of(name: str, **own: Any) -> Tokenizer:
    made: Tokenizer = tokenizers.build({"name": name, **own}, lambda: iter(TEXTS))
    return made


def context(name: str = "own", stride: int = 8) -> DataContext:
    return DataContext(8, stride, False, lambda texts: tokenizers.build({"name": name}, texts), name)


def written(folder: Path, name: str = "gpt2", shard_tokens: int = 100) -> Path:
    """A folder of shards of TEXTS."""
    request = Request(folder, TEXTS, None, 0.9, {"name": name}, shard_tokens, 1, {"tokenizer": name})
    prepare(request, Quiet())
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("kept") / "shards")


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    shutil.copytree(kept, tmp_path / "shards")
    return tmp_path / "shards"


def opened(folder: Path, name: str = "own", stride: int = 8, **own: Any) -> Corpus:
    return token_sources.tokens(context(name, stride), dir=str(folder), **own)


def refused(folder: Path, key: str = "data.dir", name: str = "own", **own: Any) -> list[str]:
    """Expect a refusal: what it says of each file."""
    with pytest.raises(UsageError) as error:
        opened(folder, name, **own)
    assert {problem.key for problem in error.value.problems} == {key}
    return [f"{Path(str(problem.value)).name}: {problem.allowed}" for problem in error.value.problems]


@pytest.mark.parametrize("name", ["gpt2", "bytes", "chars"])
@pytest.mark.parametrize("stride", [8, 3])
def test_shards_are_what_the_texts_give(name: str, stride: int, tmp_path: Path) -> None:
    tokenizer = texts_of(name)
    whole = "".join(TEXTS)
    cut = int(0.9 * len(whole))
    splits: tuple[list[str], list[str]] = ([], [])
    offset = 0
    for text in TEXTS:
        for split, part in zip(splits, (text[: max(0, cut - offset)], text[max(0, cut - offset) :]), strict=True):
            split += [part] if part else []
        offset += len(text)
    given = DataContext(8, stride, False, lambda texts: tokenizers.build({"name": name}, texts), name)
    expected = given.of_texts(lambda: iter(splits[0]), lambda: iter(splits[1]), "")
    found = opened(written(tmp_path / "shards", name), stride=stride)
    assert found.tokenizer.sha256 == tokenizer.sha256
    for ours, theirs in ((found.train, expected.train), (found.val, expected.val)):
        assert ours.tokens[0 : len(ours.tokens)].tolist() == theirs.tokens.tolist()
    theirs, ours = expected.describe(), found.describe()
    assert {key: ours[key] for key in theirs if key != "sha256"} == pytest.approx(
        {key: value for key, value in theirs.items() if key != "sha256"}
    )
    windows = torch.arange(found.train.n_windows)
    cpu = torch.device("cpu")
    assert torch.equal(found.train.batch(windows, cpu)[1], expected.train.batch(windows, cpu)[1])
    ends = found.val.for_evaluation()
    assert torch.equal(ends.batch(torch.arange(ends.n_windows), cpu)[0][0, :8], torch.tensor(theirs_start(expected)))


def theirs_start(corpus: Corpus) -> list[int]:
    return corpus.val.tokens[:8].tolist()  # type: ignore[attr-defined, no-any-return]


def test_any_part_of_the_array(tmp_path: Path) -> None:
    lengths = [5, 1, 7, 3]
    whole = np.arange(16, dtype="<u2")
    paths = [tmp_path / name for name in shards.names("train", 4)]
    for path, part in zip(paths, np.split(whole, np.cumsum(lengths)[:-1]), strict=True):
        part.tofile(path)
    array = shards.ShardedTokens(paths, lengths, whole.dtype)
    assert len(array) == 16
    for start in range(-17, 18):
        for stop in (*range(-17, 18), None):
            assert array[start:stop].tolist() == whole[start:stop].tolist()


def test_many_shards_take_few_file_descriptors(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in shards.names("train", 300)]
    for i, path in enumerate(paths):
        np.array([i], "<u2").tofile(path)
    array = shards.ShardedTokens(paths, [1] * 300, np.dtype("<u2"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [int(array[i : i + 1][0]) for i in range(300)] == list(range(300))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 130


def test_the_hash_is_that_of_the_tokens_whatever_the_shards(tmp_path: Path, kept: Path) -> None:
    other = written(tmp_path / "other", shard_tokens=333)
    assert opened(other).sha256 == opened(kept).sha256
    assert opened(written(tmp_path / "bytes", "bytes")).sha256 != opened(kept).sha256


def cut_off(folder: Path) -> None:
    with (folder / "train_00002.bin").open("r+b") as file:
        file.truncate(57)


def changed_index(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(content | values))

    return change


def with_other_schema(folder: Path) -> None:
    content = json.loads((folder / "index.json").read_text())
    del content["sha256"], content["val"]
    (folder / "index.json").write_text(json.dumps(content | {"sha256": shards._digest(content)}))


def unfinished(folder: Path) -> None:
    (folder / "index.json").rename(folder / "unfinished.json")


def with_other_tokenizer(folder: Path) -> None:
    from gpt_ablate.data import tokenizer_files

    tokenizer_files.save(texts_of("bytes"), folder / "tokenizer.json")


DAMAGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "torn shard": (cut_off, ["train_00002.bin: a shard of 200 bytes, not 57"]),
    "missing shard": (lambda folder: (folder / "val_00000.bin").unlink(), ["val_00000.bin: the shard that index"]),
    "empty index": (lambda folder: (folder / "index.json").write_text(""), ["index.json: an index that is not dam"]),
    "torn index": (
        lambda folder: (folder / "index.json").write_text((folder / "index.json").read_text()[:500]),
        ["index.json: an index that is not damaged"],
    ),
    "another format": (changed_index(format="webdataset"), ["index.json: an index of token shards, as"]),
    "a list": (lambda folder: (folder / "index.json").write_text("[]"), ["index.json: an index of token shards, as"]),
    "another version": (changed_index(version=2), ["index.json: an index of version 1, not 2"]),
    "changed index": (changed_index(vocab_size=9), ["index.json: an index that is not damaged (it says that"]),
    "another schema": (with_other_schema, ["index.json: an index of token shards (val: Field required)"]),
    "unfinished": (unfinished, ["shards: a folder that is finished"]),
    "another tokenizer": (with_other_tokenizer, ["tokenizer.json: the tokenizer of index.json, with SHA-256"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json: the tokenizer that made"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(damage: str, folder: Path) -> None:
    do, told = DAMAGES[damage]
    do(folder)
    found = refused(folder)
    assert len(found) == len(told)
    assert all(line.startswith(begin) for line, begin in zip(found, told, strict=True)), found


def test_every_wrong_shard_is_told(folder: Path) -> None:
    cut_off(folder)
    (folder / "train_00004.bin").unlink()
    assert len(refused(folder)) == 2


def test_damaged_content_is_found_by_a_full_check_alone(folder: Path) -> None:
    opened(folder, verify="full")
    tokens = np.memmap(folder / "train_00003.bin", "<u2", "r+")
    tokens[50] += 1
    tokens.flush()
    opened(folder)
    (told,) = refused(folder, verify="full")
    assert told.startswith("train_00003.bin: a shard that is not damaged")


def test_tokens_out_of_the_vocabulary_are_found_by_a_full_check(folder: Path) -> None:
    index = shards.read_index(folder)
    shards.write_index(folder, index.model_copy(update={"vocab_size": 20}))
    told = refused(folder, verify="full")
    assert len(told) == len(index.train.shards) + len(index.val.shards)
    assert "tokens below 20, found" in told[0]


def test_the_tokenizer_is_that_of_the_folder_or_refused(tmp_path: Path, kept: Path) -> None:
    assert opened(kept, "gpt2").tokenizer.sha256 == opened(kept, "own").tokenizer.sha256
    (told,) = refused(kept, "tokenizer.name", "bytes")
    assert "own: the shards were made with another tokenizer, gpt2" in told
    (told,) = refused(written(tmp_path / "chars", "chars"), "tokenizer.name", "chars")
    assert "not trained" in told


@pytest.mark.parametrize(("key", "given"), [("dtype", "uint32"), ("vocab_size", 1000)])
def test_a_key_that_contradicts_the_index(key: str, given: Any, kept: Path) -> None:
    (told,) = refused(kept, f"data.{key}", **{key: given})
    assert "index.json says so" in told


def test_keys_that_agree_with_the_index(kept: Path) -> None:
    opened(kept, dtype="uint16", vocab_size=50257)


Tokens = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path) -> Tokens:
    """nanoGPT's two files of the same tokens."""

    def write(ids: Any, dtype: str = "<u2") -> Path:
        for name in ("train.bin", "val.bin"):
            np.asarray(ids).astype(dtype).tofile(tmp_path / name)
        return tmp_path

    return write


@pytest.mark.parametrize(("vocab_size", "dtype"), [(10, "<u2"), (1000, "<u2"), (70_000, "<u4"), (250_000, "<u4")])
def test_token_files_of_another_vocabulary(
    vocab_size: int, dtype: str, files: Tokens, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.random.default_rng(0).integers(0, vocab_size, 3000)
    ids[::2] = 0  # as a task may have it
    ids[-1] = vocab_size - 1
    found = opened(files(ids, dtype), vocab_size=vocab_size)
    assert found.train.tokens.tolist() == ids.tolist()
    assert found.tokenizer.vocab_size == vocab_size
    assert found.describe()["val_bytes_per_token"] is None
    assert capsys.readouterr().err == ""
    (told,) = refused(files(ids, dtype), vocab_size=vocab_size - 1)
    assert f"tokens below {vocab_size - 1}" in told
    assert f"found {vocab_size - 1}" in told


def test_token_files_of_a_tokenizer_that_is_chosen(files: Tokens, capsys: pytest.CaptureFixture[str]) -> None:
    ids = texts_of("bytes").encode("".join(TEXTS))
    found = opened(files(ids), "bytes")
    assert found.tokenizer.vocab_size == texts_of("bytes").vocab_size
    assert found.describe()["val_bytes_per_token"] == 1
    opened(files(ids), "bytes", vocab_size=found.tokenizer.vocab_size)
    assert capsys.readouterr().err == ""
    opened(files(ids), "gpt2")
    assert "not those that GPT-2's tokenizer gives" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "own", "key", "told"),
    [
        ("gpt2", {"vocab_size": 1000}, "data.vocab_size", "50257, the vocabulary of tokenizer=gpt2"),
        ("own", {}, "data.vocab_size", "the size of the vocabulary"),
        ("chars", {}, "tokenizer.name", "a tokenizer that is not trained"),
        ("gpt2", {"verify": "full"}, "data.verify", "no hashes"),
    ],
)
def test_token_files_and_keys_that_do_not_fit(
    name: str, own: dict[str, Any], key: str, told: str, files: Tokens
) -> None:
    assert told in refused(files([1, 2, 3] * 9), key, name, **own)[0]
