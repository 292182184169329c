"""Corpora: the reference figures of The Verdict, windows, order, and every source of tokens."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_ablate.config.schema import Config
from gpt_ablate.data import loading
from gpt_ablate.data.corpus import Split
from gpt_ablate.data.gpt2_encoding import MERGES_SHA256, VOCAB_SIZE, Gpt2, gpt2

CPU = torch.device("cpu")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.txt"
    path.write_text(" ".join(f"{i} and so on," for i in range(100)), encoding="utf-8")
    return path


def split_of(length: int, context: int, stride: int) -> Split:
    return Split(np.arange(length, dtype=np.uint16), context, stride, Gpt2())


def test_the_verdict_has_the_reference_figures(verdict: Path, configure: Callable[..., Config]) -> None:
    text = verdict.read_text("utf-8")
    assert len(text) == 20_479
    assert len(Gpt2().encode(text)) == 5_145
    config = configure("data=verdict", f"data.dir={verdict.parent}", "model.context_length=256")
    assert (config.data.batch_size, config.data.stride) == (2, 256)
    corpus = loading.load(config)
    tokens = corpus.train.tokens.tolist()
    assert tokens == Gpt2().encode(text[: int(0.9 * 20_479)])
    assert corpus.val.tokens.tolist() == Gpt2().encode(text[int(0.9 * 20_479) :])
    counts = [count / len(tokens) for count in Counter(tokens).values()]
    entropy = -math.fsum(p * math.log(p) for p in counts)
    assert entropy == pytest.approx(6.008, abs=5e-4)
    evaluated = gpt2().decode_bytes(corpus.val.tokens[1:513].tolist())
    assert corpus.describe() == {
        "sha256": hashlib.sha256(verdict.read_bytes()).hexdigest(),
        "tokenizer_sha256": MERGES_SHA256,
        "vocab_size": 50_257,
        "train_tokens": 4_612,
        "val_tokens": 534,
        "train_windows": 18,
        "val_windows": 2,
        "train_bytes_per_token": pytest.approx(len(gpt2().decode_bytes(tokens[1 : 18 * 256 + 1])) / (18 * 256)),
        "val_bytes_per_token": pytest.approx(len(evaluated) / 512, rel=1e-12),
        "unigram_entropy": pytest.approx(entropy, rel=1e-12),
        "ln_vocab": pytest.approx(10.825, abs=5e-4),
    }


def test_the_sample_is_enough_for_the_demo(configure: Callable[..., Config]) -> None:
    corpus = loading.load(configure("model=mini"))
    assert corpus.train.n_windows >= 20
    assert corpus.val.n_windows >= 1


def test_targets_are_inputs_one_token_later() -> None:
    inputs, targets = split_of(100, context=8, stride=8).batch(torch.tensor([0, 3]), CPU)
    assert inputs.tolist() == [list(range(8)), list(range(24, 32))]
    assert targets.tolist() == [list(range(1, 9)), list(range(25, 33))]
    assert inputs.dtype == targets.dtype == torch.int64


def test_the_stride_makes_windows_overlap_or_skip(text_file: Path, with_data: Callable[..., Config]) -> None:
    for stride in (3, 20):
        corpus = loading.load(with_data("text", path=str(text_file), stride=stride))
        inputs, _ = corpus.train.batch(torch.tensor([0, 1, 5]), CPU)
        tokens = corpus.train.tokens.tolist()
        assert inputs.tolist() == [tokens[start : start + 8] for start in (0, stride, 5 * stride)]
        # An evaluation counts every target once, whatever the stride of training.
        _, targets = corpus.train.for_evaluation().batch(torch.arange(4), CPU)
        assert targets.flatten().tolist() == tokens[1:33]


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 60))
def test_windows_are_all_that_fit(length: int, context: int, stride: int) -> None:
    split = split_of(length, context, stride)
    starts = range(0, length - context, stride)  # the last target is the last token at most
    assert split.n_windows == len(starts)
    if starts:
        inputs, targets = split.batch(torch.arange(len(starts)), CPU)
        assert inputs[:, 0].tolist() == list(starts)
        assert targets.shape == (len(starts), context)
        assert targets.max() < length


def test_an_epochs_order_is_a_permutation_of_its_own() -> None:
    split = split_of(1000, context=9, stride=9)
    orders = {(seed, epoch): tuple(split.order(seed, epoch).tolist()) for seed in (0, 1, 12) for epoch in (1, 2, 3, 21)}
    assert all(sorted(order) == list(range(split.n_windows)) for order in orders.values())
    assert len(set(orders.values())) == len(orders)
    torch.manual_seed(7)
    assert tuple(split.order(12, 3).tolist()) == orders[12, 3]


def test_order_does_not_depend_on_the_global_generator_nor_disturb_it() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    split_of(100, 8, 8).order(0, 1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_a_text_is_split_by_characters(fraction: float, tmp_path: Path, with_data: Callable[..., Config]) -> None:
    text = "Größe, 漢字 und mehr. " * 40
    path = tmp_path / "umlauts.txt"
    path.write_text(text, encoding="utf-8")
    corpus = loading.load(with_data("text", path=str(path), train_fraction=fraction))
    cut = int(fraction * len(text))
    assert corpus.train.tokens.tolist() == Gpt2().encode(text[:cut])
    assert corpus.val.tokens.tolist() == Gpt2().encode(text[cut:])
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("fraction", "cut"), [(0.25, 100), (0.75, 300), (0.5, 200)])
def test_several_texts_are_joined_by_end_of_text(
    fraction: float, cut: int, tmp_path: Path, with_data: Callable[..., Config]
) -> None:
    first, second = "one two, " * 23 + "end", "three four " * 17 + "final end"
    first, second = first[:200].ljust(200, "."), second[:200].ljust(200, ".")
    paths = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    for path, text in zip(paths, (first, second), strict=True):
        Path(path).write_text(text)
    corpus = loading.load(with_data("text", path=paths, train_fraction=fraction))
    encode, end = Gpt2().encode, [50256]
    expected = {
        100: (encode(first[:100]), encode(first[100:]) + end + encode(second)),
        200: (encode(first), encode(second)),
        300: (encode(first) + end + encode(second[:100]), encode(second[100:])),
    }
    assert (corpus.train.tokens.tolist(), corpus.val.tokens.tolist()) == expected[cut]
    other = loading.load(with_data("text", path=paths[::-1], train_fraction=fraction))
    assert other.sha256 != corpus.sha256


def test_token_files_are_mapped_and_give_the_batches_of_their_text(
    text_file: Path, tmp_path: Path, with_data: Callable[..., Config]
) -> None:
    text = loading.load(with_data("text", path=str(text_file), stride=5))
    np.array(text.train.tokens, dtype="<u2").tofile(tmp_path / "train.bin")
    np.array(text.val.tokens, dtype="<u2").tofile(tmp_path / "val.bin")
    files = loading.load(with_data("tokens", dir=str(tmp_path), stride=5))
    for split in ("train", "val"):
        ours, theirs = getattr(files, split), getattr(text, split)
        assert isinstance(ours.tokens, np.memmap)
        assert not ours.tokens.flags.writeable
        windows = ours.order(root=3, epoch=1)
        assert torch.equal(windows, theirs.order(root=3, epoch=1))
        for some, others in zip(ours.batch(windows, CPU), theirs.batch(windows, CPU), strict=True):
            assert torch.equal(some, others)
    assert files.train.unigram_entropy() == text.train.unigram_entropy()
    both = (tmp_path / "train.bin").read_bytes() + (tmp_path / "val.bin").read_bytes()
    assert files.sha256 == hashlib.sha256(both).hexdigest()


def test_token_files_need_no_memory_of_their_size(tmp_path: Path, with_data: Callable[..., Config]) -> None:
    size = 1 << 27
    for name, bytes_ in (("train.bin", size), ("val.bin", 64)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(bytes_)  # a hole: tokens of 0
    config = with_data("tokens", dir=str(tmp_path))
    tracemalloc.start()
    try:
        corpus = loading.load(config)
        corpus.train.batch(torch.tensor([0, corpus.train.n_windows - 1]), CPU)
        corpus.describe()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert corpus.train.n_windows == (size // 2 - 1) // 8
    assert peak < size / 2


@pytest.mark.parametrize("context", [4, 7, 32])
def test_bytes_per_token_are_those_of_the_targets_that_are_evaluated(context: int) -> None:
    text = "Zoë said “naïve”: 1 2 33 — " * 9
    ids = [*Gpt2().encode(text), VOCAB_SIZE - 1, *Gpt2().encode(text)]
    split = Split(np.array(ids, dtype=np.uint16), context, 1, Gpt2())
    counted = ids[1 : (len(ids) - 1) // context * context + 1]
    pieces = [gpt2().decode_single_token_bytes(i) for i in counted if i != VOCAB_SIZE - 1]
    assert split.bytes_per_token() == pytest.approx(len(b"".join(pieces)) / len(counted))


def test_a_file_that_changes_between_two_runs_of_one_process_is_read_again(
    text_file: Path, tmp_path: Path, with_data: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loading.load(with_data("text", path=str(text_file)))
    assert loading.load(with_data("text", path=str(text_file))) is first
    text_file.write_text(text_file.read_text() + "One more line.")
    assert loading.load(with_data("text", path=str(text_file))).sha256 != first.sha256
    (tmp_path / "books").mkdir()
    for name in ("one", "two"):
        (tmp_path / "books" / name).symlink_to(tmp_path / "books")  # 2 ** 40 paths
    (tmp_path / "books" / "text.txt").write_text(text_file.read_text())
    loading.load(with_data("text", path=str(tmp_path / "books")))
    texts = {name: f"The text in folder {name}. " * 40 for name in "ab"}
    seen = {}
    for name, text in texts.items():
        (tmp_path / name / "books").mkdir(parents=True)
        (tmp_path / name / "books" / "text.txt").write_text(text)
        monkeypatch.chdir(tmp_path / name)
        seen[name] = [loading.load(with_data("text", path=path)).sha256 for path in ("books/*.txt", "books")]
    assert seen == {name: [hashlib.sha256(text.encode()).hexdigest()] * 2 for name, text in texts.items()}
