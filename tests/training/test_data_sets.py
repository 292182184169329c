"""Runs on other vocabularies and on tasks: what is trained, evaluated, recorded and sampled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import TEXT, losses, train
from torch.nn import functional as F

import gpt_ablate
from gpt_ablate.config.metrics import bits_per_byte
from gpt_ablate.config.schema import Config
from gpt_ablate.data import loading
from gpt_ablate.data.corpus import IGNORED
from gpt_ablate.training import checkpoint
from gpt_ablate.utils.errors import UsageError

RECALL = [
    *("data=recall", "data.vocab_size=16", "data.pairs=2", "data.train_examples=64", "data.val_examples=32"),
    *("data.batch_size=8", "model.d_model=16", "model.context_length=16", "model.dropout=0.0"),
    *("trainer.max_epochs=1", "trainer.max_steps=3", "trainer.eval_every=1", "trainer.eval_batches=null"),
]


@pytest.mark.parametrize(("name", "size"), [("bytes", 256), ("chars", len(set(TEXT[: int(0.9 * len(TEXT))])))])
def test_the_vocabulary_reaches_model_record_and_samples(
    name: str, size: int, small: Callable[..., Config], tmp_path: Path
) -> None:
    directory = train(small(f"tokenizer={name}", "sampling.prompt=The sheep"), tmp_path / "run")
    record, result = directory.record(), directory.result()
    assert record["data"]["vocab_size"] == size
    assert record["data"]["ln_vocab"] == math.log(size)
    assert record["data"]["val_bytes_per_token"] == record["data"]["train_bytes_per_token"] == 1
    model, tokenizer = checkpoint.load_trained(directory)
    assert model.head.weight.shape[0] == tokenizer.vocab_size == size
    assert result["parameters"] == model.n_parameters()
    assert directory.samples()[-1]["prompt"] == "The sheep"
    in_bits = bits_per_byte(result["final"]["eval/val_loss"], record["data"])
    assert in_bits == pytest.approx(result["final"]["eval/val_loss"] / math.log(2))


def test_the_api_gives_the_tokenizer_of_a_run(small: Callable[..., Config], tmp_path: Path) -> None:
    directory = train(small("tokenizer=chars", "sampling.prompt=sheep"), tmp_path / "run")
    tokenizer = gpt_ablate.load_run(directory.path).tokenizer()
    assert "".join(tokenizer.stream_text(tokenizer.encode("The sheep"))) == "The sheep"
    file = directory.checkpoints / "tokenizer.json"
    file.write_text(json.dumps({"name": "bytes"}))
    with pytest.raises(UsageError, match="the tokenizer of this run"):
        checkpoint.load_trained(directory)


def test_runs_of_two_tokenizers_are_two_runs(small: Callable[..., Config], tmp_path: Path) -> None:
    train(small(), tmp_path / "run")
    with pytest.raises(UsageError, match=r"already holds a run of another config \(tokenizer.name: None there"):
        train(small("tokenizer=bytes"), tmp_path / "run")


def test_windows_with_replacement_are_drawn_from_all_positions(small: Callable[..., Config]) -> None:
    config = small("data.replacement=true", "data.stride=1", "tokenizer=bytes")
    split = loading.load(config).train
    first, second = (split.order(0, epoch)[: split.n_windows] for epoch in (1, 2))
    assert first.min() >= 0
    assert first.max() < split.n_windows
    assert len(set(first.tolist())) == pytest.approx((1 - 1 / math.e) * split.n_windows, rel=0.05)
    assert not torch.equal(first, second)
    assert torch.equal(first[5:9], split.order(0, 1)[5:9])


def test_a_task_records_its_accuracies(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(*RECALL)
    directory = train(config, tmp_path / "run")
    model, _ = checkpoint.load_trained(directory)
    final = directory.result()["final"]
    for split, (loss, accuracy) in (
        ("train", ("eval/train_loss", "eval/train_accuracy")),
        ("val", ("eval/val_loss", "eval/accuracy")),
    ):
        examples = getattr(loading.load(config), split).for_evaluation()
        inputs, targets = examples.batch(torch.arange(examples.n_windows), torch.device("cpu"))
        with torch.inference_mode():
            logits = model(inputs)
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED).item()
        right = (logits.argmax(dim=-1) == targets)[targets >= 0].float().mean().item()
        assert final[loss] == pytest.approx(expected, rel=1e-5)
        assert final[accuracy] == pytest.approx(right)
    assert {line["step"] for line in directory.metrics() if "eval/accuracy" in line} == {0, 1, 2, 3}
    assert directory.samples() == []
    assert directory.record()["data"]["val_bytes_per_token"] is None
    assert {metric["key"] for metric in directory.record()["metrics"]} == {"eval/accuracy", "eval/train_accuracy"}


def test_parts_of_a_batch_weigh_as_many_targets_as_they_have(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    plain = loading.load(configure(*RECALL)).train
    draw = type(plain).batch

    def uneven(self: object, windows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The examples with even numbers keep one target that counts."""
        inputs, targets = draw(self, windows, device)
        counted = (targets >= 0).int().cumsum(dim=1)
        return inputs, targets.masked_fill((windows % 2 == 0)[:, None] & (counted > 1), IGNORED)

    monkeypatch.setattr(type(plain), "batch", uneven)
    for parts in (1, 2, 4):
        found.append(losses(train(configure(*RECALL, f"trainer.accumulate={parts}"), tmp_path / f"run_{parts}")))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_the_last_evaluation_may_be_of_fewer_windows(small: Callable[..., Config], tmp_path: Path) -> None:
    whole, few = (
        train(small("tokenizer=bytes", *own), tmp_path / f"run_{len(own)}").result()["final"]["eval/train_loss"]
        for own in ((), ("trainer.final_eval_batches=1",))
    )
    assert whole != few
    assert few == pytest.approx(whole, rel=0.1)


def test_a_prompt_that_has_no_tokens_is_refused_before_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    given = ["data=text", "data.path=text.txt", "tokenizer=chars", "model=micro", "sampling.prompt=Zebra"]
    with pytest.raises(UsageError, match=r"sampling\.prompt.*trainer\.sample_every=0") as error:
        gpt_ablate.train([*given, "data.batch_size=2"], quiet=True)
    assert "'Z'" in str(error.value) or "U+005A" in str(error.value)
    assert not (tmp_path / "outputs").exists()
