"""TensorBoard shows what the JSONL record holds, no more and no less."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from small_runs import small_run, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from gpt_ablate.config.schema import Config
from gpt_ablate.launching import execution
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.tracking.tracker import ProgressBar
from gpt_ablate.training import builtin_callbacks, trainer

TAGS = {
    "train/loss": "train/loss",
    "train/epoch_loss": "train/epoch_loss",
    "eval/train_loss": "eval/train_loss",
    "eval/val_loss": "eval/val_loss",
    "optim/lr": "lr",
    "optim/grad_norm": "grad_norm",
    "perf/tokens_per_second": "tokens_per_second",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Config]) -> Config:
    """A run of 12 steps that is sampled at each."""
    folder = tmp_path_factory.mktemp("text")
    every = ["trainer.max_epochs=2", "trainer.eval_every=2", "trainer.sample_every=1", "sampling.max_new_tokens=2"]
    return configure(*small_run(folder), *every, "norm=post", "seed=5", "cell_keys=[model,optimizer.lr]")


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run, uninterrupted."""
    return train(config, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def parts(config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run, crashed after step 4 (checkpoint at 4, records up to 5), stopped after step 7, then finished."""
    path = tmp_path_factory.mktemp("parts")
    saving = config.model_copy(update={"trainer": config.trainer.model_copy(update={"checkpoint_every": 4})})
    original = trainer.Trainer._optimise

    def optimise(self: trainer.Trainer, step: int) -> dict[str, Any]:
        if step == 6 and not (path / "crashed").exists():
            (path / "crashed").touch()
            raise RuntimeError("crash")
        if step == 7 and not (path / "stopped").exists():
            (path / "stopped").touch()
            signal.raise_signal(signal.SIGINT)
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_optimise", optimise)
        for error in (RuntimeError, trainer.Interrupted):
            with pytest.raises(error):
                train(saving, path)
        return train(saving, path)


def events(directory: RunDirectory) -> EventAccumulator:
    """Everything in the run's event files."""
    every = dict.fromkeys(("scalars", "tensors", "images", "histograms", "compressedHistograms", "audio"), 0)
    return EventAccumulator(str(directory.path), size_guidance=every).Reload()


@pytest.fixture(params=["whole", "parts"])
def directory(request: pytest.FixtureRequest) -> RunDirectory:
    """Each of the two in turn."""
    found: RunDirectory = request.getfixturevalue(request.param)
    return found


def test_scalars_are_the_metrics(directory: RunDirectory) -> None:
    shown, lines = events(directory), directory.metrics()
    assert set(shown.Tags()["scalars"]) == set(TAGS)
    start = datetime.fromisoformat(directory.record()["start"]).timestamp()
    for tag, key in TAGS.items():
        expected = [(line["step"], np.float32(line[key]), start + line["wall_time"]) for line in lines if key in line]
        scalars = shown.Scalars(tag)
        assert [(scalar.step, np.float32(scalar.value)) for scalar in scalars] == [each[:2] for each in expected], tag
        assert [scalar.wall_time for scalar in scalars] == pytest.approx([each[2] for each in expected], abs=1e-3)


def test_no_step_is_missing_or_twice(directory: RunDirectory) -> None:
    assert [line["step"] for line in directory.metrics()] == list(range(13))
    assert [event.step for event in events(directory).Scalars("train/loss")] == list(range(1, 13))
    assert len(list(directory.path.glob("events.out.tfevents.*"))) == 1


def test_a_resumed_run_shows_what_an_uninterrupted_one_does(whole: RunDirectory, parts: RunDirectory) -> None:
    one, other = events(whole), events(parts)
    for tag in set(TAGS) - {"perf/tokens_per_second"}:
        assert [e.value for e in one.Scalars(tag)] == [e.value for e in other.Scalars(tag)], tag


def test_every_sample_is_shown_as_text(directory: RunDirectory) -> None:
    shown = events(directory).Tensors("samples/text_summary")
    samples = directory.samples()
    assert [event.step for event in shown] == [sample["step"] for sample in samples] == list(range(1, 13))
    for event, sample in zip(shown, samples, strict=True):
        (text,) = event.tensor_proto.string_val
        assert text.decode().replace("\n\n", "\n") == f"**{sample['prompt']}**{sample['text']}".replace("\n\n", "\n")
        assert sample["prompt"] == "Every effort moves you"
        assert {"temperature", "top_k", "top_p", "max_new_tokens"} <= sample.keys()


def test_hparams_and_final_metrics_stand_in_the_run_itself(directory: RunDirectory) -> None:
    shown = events(directory)
    assert [path.name for path in directory.path.iterdir() if path.is_dir()] == ["checkpoint"]
    content = shown.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: hparams[name].string_value for name in ("norm", "layers", "attention", "model")} == {
        "norm": "post",
        "layers": "fresh",
        "attention": "parallel",
        "model": "micro",
    }
    assert hparams["seed"].number_value == 5
    assert hparams["optimizer.lr"].number_value == 4e-4
    final = directory.result()["final"]
    assert {"train/loss", "train/epoch_loss", "eval/train_loss", "eval/val_loss"} == final.keys()
    for key, value in final.items():
        assert np.float32(shown.Scalars(key)[-1].value) == np.float32(value)
    assert final["eval/val_loss"] == directory.metrics()[-1]["eval/val_loss"]


def test_without_a_terminal_there_is_a_line_an_epoch(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = config.model_copy(update={"trainer": config.trainer.model_copy(update={"sample_every": 0})})
    execution.run(short, tmp_path / "run", [], Console(width=200))
    begun, *lines = capsys.readouterr().out.splitlines()
    assert begun.endswith("/run: starts")
    means = [
        line["train/epoch_loss"] for line in RunDirectory(tmp_path / "run").metrics() if "train/epoch_loss" in line
    ]
    assert len(lines) == 2
    for i, (line, mean) in enumerate(zip(lines, means, strict=True), start=1):
        assert line.partition("/run: ")[2].startswith(f"epoch {i}/2  step {6 * i}/12  train {mean:.4f}")


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_record_that_was_removed_ends_the_run(name: str, config: Config, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin_callbacks, "evaluate", lambda trainer, batches=None: (path / name).unlink() or {})
        with pytest.raises(FileNotFoundError) as error:
            execution.run(config, path, [], Console(quiet=True))
    assert error.value.filename == str(path / name)
    assert RunDirectory(path).record()["status"] == "failed"


def test_a_log_has_a_line_for_each_half_minute_of_a_long_epoch() -> None:
    out = io.StringIO()
    bar = ProgressBar(Console(file=out), "mine", steps=100, done=0, epochs=1)
    for step in range(1, 101):
        line = {"step": step, "epoch": 1, "wall_time": step, "train/loss": 2.0, "tokens_per_second": 10.0}
        bar.show(line | ({"train/epoch_loss": 3.0} if step == 100 else {}), epoch_done=step == 100)
    assert [line.split("  ")[1:3] for line in out.getvalue().splitlines()] == [
        *(["step 30/100", "train 2.0000"], ["step 60/100", "train 2.0000"], ["step 90/100", "train 2.0000"]),
        ["step 100/100", "train 3.0000 (mean of the epoch)"],
    ]
