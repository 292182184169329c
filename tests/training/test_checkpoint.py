"""How runs end and go on: interrupted, failed, diverged, finished; and the checkpoints they leave."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_runs import TEXT, losses, small_run, timeless, train
from torch import Tensor

from gpt_ablate.axes.norm import PreNorm, norms
from gpt_ablate.config.schema import Config
from gpt_ablate.data import loading
from gpt_ablate.launching import execution
from gpt_ablate.models import objectives
from gpt_ablate.models.gpt import GPT
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training import checkpoint, trainer
from gpt_ablate.utils.errors import UsageError

VARIANTS = [*itertools.product(("pre", "post"), ("fresh", "clone"), ("looped", "parallel")), ("pre", "fresh", "sdpa")]


@pytest.fixture
def small(tmp_path: Path, configure: Callable[..., Config]) -> Callable[..., Config]:
    """A small config with the given overrides."""
    fixed = [*small_run(tmp_path), "sampling.max_new_tokens=3"]
    return lambda *overrides: configure(*fixed, *overrides)


def files(path: Path) -> dict[Path, tuple[bytes, int]]:
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Have this process receive a signal during a step."""
    original = trainer.Trainer._optimise

    def optimise(self: trainer.Trainer, at: int) -> dict[str, Any]:
        if at == step:
            signal.raise_signal(number)
        return original(self, at)

    monkeypatch.setattr(trainer.Trainer, "_optimise", optimise)


@pytest.mark.parametrize(("norm", "layers", "attention"), VARIANTS)
@pytest.mark.fast_cases(3)
def test_an_interrupted_run_goes_on_bit_for_bit(
    norm: str,
    layers: str,
    attention: str,
    small: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropout = 0.1 if layers == "fresh" else 0
    axes = (f"norm={norm}", f"layers={layers}", f"attention={attention}", f"model.dropout={dropout}")
    config = small(*axes, "trainer.max_steps=4", "trainer.max_epochs=2")
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        with pytest.raises(trainer.Interrupted, match="after step 2"):
            train(config, tmp_path / "parts")
    assert RunDirectory(tmp_path / "parts").record()["status"] == "running"
    assert not RunDirectory(tmp_path / "parts").finished()
    parts = train(config, tmp_path / "parts")
    assert timeless(parts.metrics()) == timeless(whole.metrics())
    assert timeless(parts.samples()) == timeless(whole.samples())
    final = Path("checkpoint/final/model.safetensors")
    assert (parts.path / final).read_bytes() == (whole.path / final).read_bytes()
    assert parts.result()["final"] == whole.result()["final"]


def test_sigterm_saves_too_and_handlers_are_put_back(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal_at(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(trainer.Interrupted):
        train(small(), tmp_path / "run")
    assert (tmp_path / "run/checkpoint/step_000000001").is_dir()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_finished_run_is_not_touched(small: Callable[..., Config], tmp_path: Path) -> None:
    directory = train(small("trainer.max_steps=1"), tmp_path / "run")
    before = files(directory.path)
    assert execution.run(small("trainer.max_steps=1"), directory.path, ["x=1"], Console(quiet=True)) == json.loads(
        directory.result_file.read_text()
    )
    assert files(directory.path) == before


def test_another_config_in_the_same_place_is_refused(small: Callable[..., Config], tmp_path: Path) -> None:
    directory = train(small("trainer.max_steps=1"), tmp_path / "run")
    before = files(directory.path)
    with pytest.raises(UsageError, match=r"optimizer\.lr: 0\.0004 there, 0\.001 here"):
        train(small("trainer.max_steps=1", "optimizer.lr=1e-3"), directory.path)
    (tmp_path / "text.txt").write_text(TEXT + " One more.")
    loading._corpus.cache_clear()
    with pytest.raises(UsageError, match="the text or the tokenizer is another"):
        train(small("trainer.max_steps=1"), directory.path)
    assert files(directory.path) == before


def test_restart_replaces_a_finished_run(small: Callable[..., Config], tmp_path: Path) -> None:
    train(small("trainer.max_steps=2"), tmp_path / "run")
    again = train(small("trainer.max_steps=1", "trainer.resume=restart", "optimizer.lr=1e-3"), tmp_path / "run")
    assert [line["step"] for line in again.metrics()] == [0, 1]
    assert again.record()["config"]["optimizer"]["lr"] == 1e-3
    assert again.result()["step"] == 1


def break_step(monkeypatch: pytest.MonkeyPatch, at: int, spoil: Callable[[Tensor, GPT], Tensor]) -> None:
    """Pass the training loss of one step through `spoil`."""
    original, count = objectives.loss_per_token, itertools.count(1)

    def loss(model: GPT, *args: Any, **kwargs: Any) -> Tensor:
        value = original(model, *args, **kwargs)
        return spoil(value, model) if model.training and next(count) == at else value

    monkeypatch.setattr(objectives, "loss_per_token", loss)


def endless_slope(loss: Tensor, model: GPT) -> Tensor:
    weight = model.head.weight.sum()
    return loss + (weight - weight.detach()).sqrt()


@pytest.mark.parametrize(
    ("what", "spoil"),
    [("the loss is nan", lambda loss, _: loss * float("nan")), ("the gradient's norm is", endless_slope)],
)
def test_a_run_that_diverges_stops_before_the_update(
    what: str,
    spoil: Callable[[Tensor, GPT], Tensor],
    small: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = train(small("trainer.max_steps=2"), tmp_path / "before")
    break_step(monkeypatch, 3, spoil)
    directory = train(small(), tmp_path / "run")
    result = directory.result()
    assert directory.record()["status"] == result["status"] == "diverged"
    assert what in result["diverged"]
    assert "at step 3" in result["diverged"]
    assert result["step"] == 2
    assert losses(directory) == losses(before)
    weights = [checkpoint.load_trained(each)[0].state_dict() for each in (directory, before)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


@pytest.mark.parametrize("watch", ["eval_every=0", "eval_every=1", "sample_every=1", "max_steps=1"])
def test_an_absurd_rate_diverges_and_is_recorded(watch: str, small: Callable[..., Config], tmp_path: Path) -> None:
    directory = train(small("optimizer.lr=1e30", f"trainer.{watch}"), tmp_path / "run")
    assert directory.result()["status"] == directory.record()["status"] == "diverged"
    assert "step 1" in directory.result()["diverged"] or "step 2" in directory.result()["diverged"]
    assert len(losses(directory)) == 1


@pytest.mark.parametrize(
    ("raised", "told"), [(RuntimeError("no such luck"), "no such luck"), (SystemExit(0), "asked Python to exit")]
)
def test_a_failure_is_recorded_and_can_be_mended(
    raised: BaseException, told: str, small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(PreNorm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise raised

    monkeypatch.setitem(norms.builders, "broken", Broken)
    Broken.__init__.__annotations__.clear()
    monkeypatch.setattr(norms, "parameters", lambda name: {"eps": float | None})
    config = small("norm.name=broken", "trainer.max_steps=1")
    with pytest.raises(RuntimeError, match=told):
        train(config, tmp_path / "run")
    record = RunDirectory(tmp_path / "run").record()
    assert record["status"] == "failed"
    assert "Traceback" in record["error"]
    assert type(raised).__name__ in record["error"]
    assert record["end"] is not None
    monkeypatch.setitem(norms.builders, "broken", PreNorm)
    record = train(config, tmp_path / "run").record()
    assert (record["status"], record["error"]) == ("done", None)


def stopped_after_three(small: Callable[..., Config], path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """An interrupted run at `path` with checkpoints of steps 2 and 3."""
    config = small("trainer.checkpoint_every=1", "trainer.max_steps=4", "model.dropout=0.1")
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        with pytest.raises(trainer.Interrupted):
            train(config, path)
    return config


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.fast_cases(1)
def test_a_damaged_checkpoint_is_passed_over(
    name: str,
    small: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = stopped_after_three(small, tmp_path / "run", monkeypatch)
    kept = sorted(folder.name for folder in (tmp_path / "run/checkpoint").glob("step_*"))
    assert kept == ["step_000000002", "step_000000003"]
    spoiled = tmp_path / "run/checkpoint/step_000000003" / name
    if name == "state.json":
        spoiled.write_text(spoiled.read_text()[:-20])
    else:
        damage(spoiled)
    execution.run(config, tmp_path / "run", [], Console(width=1000))
    told = capsys.readouterr().out
    assert str(spoiled) in told
    assert "goes on after step 2" in told
    whole = train(config, tmp_path / "whole")
    assert timeless(RunDirectory(tmp_path / "run").metrics()) == timeless(whole.metrics())


def test_no_whole_checkpoint_is_an_error_that_names_them(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stopped_after_three(small, tmp_path / "run", monkeypatch)
    for folder in (tmp_path / "run/checkpoint").glob("step_*"):
        (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError) as error:
        train(config, tmp_path / "run")
    assert all(f"step_00000000{step}" in str(error.value) for step in (2, 3))
    with pytest.raises(UsageError, match="step_000000003"):
        checkpoint.load_trained(RunDirectory(tmp_path / "run"))


def test_a_finished_run_keeps_its_weights_alone_and_no_pickle(small: Callable[..., Config], tmp_path: Path) -> None:
    directory = train(small("trainer.checkpoint_every=1", "trainer.max_steps=3"), tmp_path / "run")
    kept = sorted(file.relative_to(directory.checkpoints).as_posix() for file in directory.checkpoints.rglob("*"))
    weights = [f"{kind}{file}" for kind in ("best", "final") for file in ("", "/model.safetensors", "/state.json")]
    assert kept == [*weights, "tokenizer.json"]
    for file, (content, _) in files(directory.path).items():
        plain = file.suffix in (".json", ".jsonl", ".safetensors") or (file.name, content) == (".lock", b"")
        assert plain or file.name.startswith("events.out.tfevents.")
        assert not content.startswith((b"\x80", b"PK"))
    for best, name in ((False, "final"), (True, "best")):
        checkpoint.load_trained(directory, best=best)
        (file,) = directory.checkpoints.glob(f"{name}/*.safetensors")
        damage(file)
        with pytest.raises(UsageError, match=r"model\.safetensors.*damaged"):
            checkpoint.load_trained(directory, best=best)


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_weights_are_of_the_lowest_validation_loss(
    interrupted: bool, small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("trainer.eval_every=1", "trainer.max_steps=5", "optimizer.lr=0.1")
    if interrupted:
        with monkeypatch.context() as patch:
            signal_at(patch, 3)
            with pytest.raises(trainer.Interrupted):
                train(config, tmp_path / "run")
    directory = train(config, tmp_path / "run")
    losses_at = {line["step"]: line["eval/val_loss"] for line in directory.metrics() if line["step"]}
    lowest = min(losses_at, key=lambda step: losses_at[step])
    state = json.loads((directory.checkpoints / "best/state.json").read_text())
    assert (state["step"], state["eval/val_loss"]) == (lowest, losses_at[lowest])
    assert 0 < lowest < 5, "a recipe whose best step is not its last"
    alone = train(small("trainer.eval_every=1", f"trainer.max_steps={lowest}", "optimizer.lr=0.1"), tmp_path / "alone")
    best, final = (checkpoint.load_trained(run, best=best)[0] for run, best in ((directory, True), (alone, False)))
    assert all(map(torch.equal, best.parameters(), final.parameters()))
    never = train(small("trainer.checkpoint_every=0", "trainer.max_steps=1"), tmp_path / "never")
    with pytest.raises(UsageError, match="best checkpoint"):
        checkpoint.load_trained(never, best=True)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_record_that_lost_lines_is_not_gone_on_with(
    name: str, small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states say how many lines there were; with fewer, going on would leave a gap."""
    config = small("trainer.checkpoint_every=1", "trainer.sample_every=1", "trainer.max_steps=4")
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        with pytest.raises(trainer.Interrupted):
            train(config, tmp_path / "run")
    file = tmp_path / "run" / name
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    directory = train(config, tmp_path / "run")
    assert [line["step"] for line in directory.metrics()] == [0, 1, 2, 3, 4]
    assert [line["step"] for line in directory.samples()] == [1, 2, 3, 4]
    (tmp_path / "run/result.json").unlink()
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        with pytest.raises(trainer.Interrupted):
            train(config, tmp_path / "again")
    (tmp_path / "again" / name).write_text("")
    with pytest.raises(UsageError, match=rf"{name}.*lines or more"):
        train(config, tmp_path / "again")


def test_tied_weights_survive_a_checkpoint(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("model.tie_weights=true", "model.qkv_bias=true", "trainer.max_steps=3")
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_at(patch, 1)
        with pytest.raises(trainer.Interrupted):
            train(config, tmp_path / "parts")
    assert losses(train(config, tmp_path / "parts")) == losses(whole)
    model, _ = checkpoint.load_trained(whole)
    assert model.head.weight is model.token_embedding.weight


def test_never_starts_anew_and_leaves_no_older_state_behind(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after_three(small, tmp_path / "run", monkeypatch)
    fixed = ("trainer.checkpoint_every=1", "trainer.max_steps=4", "model.dropout=0.1")
    with monkeypatch.context() as patch:
        signal_at(patch, 1)
        with pytest.raises(trainer.Interrupted):
            train(small(*fixed, "trainer.resume=never"), tmp_path / "run")
    assert [line["step"] for line in RunDirectory(tmp_path / "run").metrics()] == [0, 1]
    directory = train(small(*fixed), tmp_path / "run")
    assert [line["step"] for line in directory.metrics()] == [0, 1, 2, 3, 4]


def test_a_crash_between_checkpoints_goes_back_to_the_last(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("trainer.checkpoint_every=2", "trainer.eval_every=1", "trainer.sample_every=1", "model.dropout=0.1")
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        break_step(patch, 6, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    with directory.metrics_file.open("a") as file:
        file.write('{"step": 6, "train/lo')
    train(config, directory.path)
    assert timeless(directory.metrics()) == timeless(whole.metrics())
    assert timeless(directory.samples()) == timeless(whole.samples())
