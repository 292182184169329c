"""The training loop against a plain one, and what it leaves behind when it does not come to its end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import TEXT, losses, plain_losses, small_run, timeless, train
from torch import Tensor
from torch.nn import functional as F

from gpt_ablate.config.schema import Config
from gpt_ablate.data import loading
from gpt_ablate.data.gpt2_encoding import Gpt2
from gpt_ablate.models.gpt import GPT, flops_per_token
from gpt_ablate.training import checkpoint, optimizers
from gpt_ablate.utils.errors import UsageError

VARIANTS = list(itertools.product(("pre", "post"), ("fresh", "clone"), ("looped", "parallel")))


@pytest.fixture
def small(tmp_path: Path, configure: Callable[..., Config]) -> Callable[..., Config]:
    """A small config with the given overrides."""
    fixed = [*small_run(tmp_path), "sampling.max_new_tokens=3"]
    return lambda *overrides: configure(*fixed, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        "norm=pre",
        "norm=post optimizer.weight_decay=0",
        "trainer.accumulate=2 schedule=warmup schedule.warmup_steps=4",
        "trainer.grad_clip=0.05",
        "model.tie_weights=true",
        "model.tie_weights=true trainer.accumulate=2 trainer.grad_clip=0.05",
    ],
)
@pytest.mark.fast_cases(3)
def test_losses_are_those_of_a_plain_loop(overrides: str, small: Callable[..., Config], tmp_path: Path) -> None:
    config = small("optimizer.lr=1e-2", "data.batch_size=4", *overrides.split())
    directory = train(config, tmp_path / "run")
    expected, norms_expected = plain_losses(config)
    steps = directory.result()["step"]
    assert steps == len(loading.load(config).train.order(0, 1)) // 4
    assert losses(directory) == pytest.approx(expected[:steps], rel=1e-4)
    recorded = [line["grad_norm"] for line in directory.metrics() if "grad_norm" in line]
    assert recorded == pytest.approx(norms_expected[:steps], rel=1e-3)


def test_clipping_limits_the_gradient_of_the_update(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = optimizers.adamw_step

    def update(parameters: list[Tensor], gradients: list[Tensor], *args: Any, **settings: Any) -> None:
        seen.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        original(parameters, gradients, *args, **settings)

    monkeypatch.setattr(optimizers, "adamw_step", update)
    directory = train(small("trainer.grad_clip=0.25", "trainer.max_steps=2"), tmp_path / "run")
    assert seen == pytest.approx([0.25, 0.25], rel=1e-3)
    assert all(line["grad_norm"] > 0.5 for line in directory.metrics() if "grad_norm" in line)


def test_same_config_same_bits(small: Callable[..., Config], tmp_path: Path) -> None:
    config = small("model.dropout=0.1", "trainer.eval_every=2", "trainer.sample_every=3")
    first, second = (train(config, tmp_path / name) for name in "ab")
    assert timeless(first.metrics()) == timeless(second.metrics())
    assert timeless(first.samples()) == timeless(second.samples())
    assert len(first.samples()) == 2
    other = train(config.model_copy(update={"seed": 7}), tmp_path / "c")
    assert losses(other) != losses(first)


def test_watching_more_often_changes_no_step(small: Callable[..., Config], tmp_path: Path) -> None:
    rare = train(small("model.dropout=0.1", "trainer.sample_every=0"), tmp_path / "rare")
    often = train(
        small("model.dropout=0.1", "trainer.eval_every=1", "trainer.sample_every=1", "trainer.checkpoint_every=1"),
        tmp_path / "often",
    )
    assert losses(rare) == losses(often)
    assert rare.samples() == []
    assert [line["step"] for line in often.samples()] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in often.metrics() if "eval/val_loss" in line] == [0, 1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in rare.metrics() if "eval/val_loss" in line] == [0, 6]


def test_bfloat16_autocast_is_near_float32(small: Callable[..., Config], tmp_path: Path) -> None:
    exact = train(small("trainer.max_steps=2"), tmp_path / "float32")
    rough = train(small("trainer.max_steps=2", "trainer.dtype=bfloat16"), tmp_path / "bfloat16")
    assert losses(rough) != losses(exact)
    assert losses(rough) == pytest.approx(losses(exact), abs=0.1)
    model, _ = checkpoint.load_trained(rough)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("epochs", "limit", "steps"), [("2", "null", 12), ("null", "2", 2), ("1", "4", 4), ("1", "99", 6)]
)
def test_length_and_epoch_means(
    epochs: str, limit: str, steps: int, small: Callable[..., Config], tmp_path: Path
) -> None:
    overrides = (f"trainer.max_epochs={epochs}", f"trainer.max_steps={limit}", "trainer.sample_every=0")
    directory = train(small(*overrides, "trainer.eval_every=null"), tmp_path / "run")
    lines = directory.metrics()
    assert [line["step"] for line in lines] == list(range(steps + 1))
    assert [line["epoch"] for line in lines] == [0, *(1 + i // 6 for i in range(steps))]
    assert [line["tokens"] for line in lines] == [32 * step for step in range(steps + 1)]
    ends = [step for step in range(1, steps + 1) if step % 6 == 0 or step == steps]
    assert [line["step"] for line in lines if "train/epoch_loss" in line] == ends
    assert [line["step"] for line in lines if "eval/val_loss" in line] == [0, *ends]
    for line in lines:
        if "train/epoch_loss" in line:
            epoch = [other["train/loss"] for other in lines[1:] if other["epoch"] == line["epoch"]]
            assert line["train/epoch_loss"] == pytest.approx(sum(epoch) / len(epoch), rel=1e-12)


@pytest.mark.parametrize(
    ("limit", "steps"),
    [("max_tokens=100", 3), ("max_tokens=96", 3), ("max_flops={flops}", 4), ("max_tokens=9999", 6)],
)
def test_the_first_limit_ends_the_run(limit: str, steps: int, small: Callable[..., Config], tmp_path: Path) -> None:
    flops = 4.5 * 32 * flops_per_token(GPT(small()))
    directory = train(small(f"trainer.{limit.format(flops=flops)}", "trainer.sample_every=0"), tmp_path / "run")
    assert directory.metrics()[-1]["step"] == directory.result()["step"] == steps
    assert "eval/val_loss" in directory.metrics()[-1]
    assert directory.record()["total_steps"] == steps


def test_seconds_of_training_end_the_run(small: Callable[..., Config], tmp_path: Path) -> None:
    limit = 0.05
    directory = train(small(f"trainer.max_seconds={limit}", "trainer.max_epochs=1000"), tmp_path / "run")
    spent = list(itertools.accumulate(32 / line["tokens_per_second"] for line in directory.metrics()[1:]))
    assert spent[-1] >= limit
    assert all(seconds < limit for seconds in spent[:-1])
    assert directory.result()["training_seconds"] == pytest.approx(spent[-1])
    assert directory.result()["status"] == "done"
    assert "eval/val_loss" in directory.metrics()[-1]


def test_flops_that_pay_for_no_step_are_refused(small: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"trainer.max_flops = 1.0: at least one step"):
        train(small("trainer.max_flops=1"), tmp_path / "run")


def test_arms_share_no_draw_and_a_repeat_shares_all(small: Callable[..., Config], tmp_path: Path) -> None:
    plain, a, b, again = (
        train(small("model.dropout=0.1", *overrides), tmp_path / name)
        for name, overrides in {"plain": (), "a": ["arm=a"], "b": ["arm=b"], "again": ["arm=b", "repeat=1"]}.items()
    )
    assert timeless(b.metrics()) == timeless(again.metrics())
    assert timeless(b.samples()) == timeless(again.samples())
    assert b.record()["fingerprint"] == again.record()["fingerprint"]
    weights = [dict(checkpoint.load_trained(run)[0].named_parameters()) for run in (plain, a, b)]
    orders = [
        loading.load(small(*arm)).train.order(small(*arm).root, 1).tolist() for arm in ((), ("arm=a",), ("arm=b",))
    ]
    for one, other in itertools.combinations(range(3), 2):
        assert not torch.equal(weights[one]["token_embedding.weight"], weights[other]["token_embedding.weight"])
        assert orders[one] != orders[other]
    assert len({run.record()["fingerprint"] for run in (plain, a, b)}) == 3


def test_threads_are_those_asked_for_while_the_run_lasts(small: Callable[..., Config], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    directory = train(small(f"trainer.threads={before + 1}", "trainer.max_steps=1"), tmp_path / "run")
    assert directory.record()["hardware"]["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_the_result_is_over_the_whole_of_both_splits(small: Callable[..., Config], tmp_path: Path) -> None:
    config = small("model.dropout=0.5", "trainer.max_steps=2", "data.stride=4", "trainer.eval_batches=1")
    directory = train(config, tmp_path / "run")
    result = directory.result()
    model, tokenizer = checkpoint.load_trained(directory)
    assert tokenizer.encode(TEXT) == Gpt2().encode(TEXT)
    assert checkpoint.trained_config(directory, []) == config
    cut = int(0.9 * len(TEXT))
    for split, text in (("train", TEXT[:cut]), ("val", TEXT[cut:])):
        ids = torch.tensor(Gpt2().encode(text))
        rows = (len(ids) - 1) // 16
        x, y = ids[: rows * 16].view(rows, 16), ids[1 : rows * 16 + 1]
        with torch.inference_mode():
            expected = F.cross_entropy(model(x).flatten(0, 1), y).item()
        assert result["final"][f"eval/{split}_loss"] == pytest.approx(expected, rel=1e-5)
    assert result["final"]["train/loss"] == losses(directory)[-1]


def test_the_result_tells_what_it_cost(small: Callable[..., Config], tmp_path: Path) -> None:
    config = small("trainer.max_steps=1")
    result = train(config, tmp_path / "run").result()
    d, hidden, layers, context, vocabulary = 16, 64, config.model.n_layer, 16, 50257
    products = layers * (4 * d * d + 2 * d * hidden) + d * vocabulary
    assert result["flops_per_token"] == 3 * (2 * products + layers * 4 * context * d)
    assert result["parameters"] == GPT(config).n_parameters()
    assert result["peak_rss_bytes"] > 4 * 4 * result["parameters"]
    assert result["tokens"] == 32
    assert result["tokens_per_second"] > 0
