"""Numbers that no run records, in a stranger's files: refused by file and line, or shown without a warning."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from synthetic import Shape, make_study

from gpt_ablate import report, status
from gpt_ablate.reporting import study_figures

RUN = "pre-fresh-parallel/seed_0"
DROPPED = object()
Command = Callable[[ModuleType, Path], str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs") / "study"
    shape = Shape(steps=6, steps_per_epoch=2)
    return make_study(root, {"norm": ["post", "pre"]}, range(2), lambda levels, seed: 3.0 + seed, shape=shape)


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """What a command says as it refuses a study, in one line."""
    monkeypatch.setattr(study_figures, "plates", lambda found, runs: [])  # figures take most of the time

    def told(command: ModuleType, study: Path) -> str:
        monkeypatch.setattr("sys.argv", ["command", str(study)])
        with pytest.raises(SystemExit) as stop:
            command.main()
        assert stop.value.code == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line

    return told


def change(file: Path, key: str, value: Any, number: int = 1) -> None:
    """Change a value in line `number` of a file, or in the whole of it."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    content = node = json.loads(lines[number - 1])
    *sections, last = key.split(":")
    for section in sections:
        node = node[section]
    node[last] = value
    if value is DROPPED:
        del node[last]
    lines[number - 1] = json.dumps(content)
    file.write_text("\n".join(lines) + "\n")


WRONG = [
    *(("metrics.jsonl", key, 1e308) for key in ("train/loss", "eval/train_loss", "train/epoch_loss", "wall_time")),
    *(("metrics.jsonl", "train/loss", value) for value in (-1e308, float("nan"), "3", None, [1], True)),
    *(("metrics.jsonl", "step", value) for value in (-1, 0, 6.5, 1e308, 2**63, 10**30, "6", DROPPED)),
    *(("metrics.jsonl", "tokens_per_second", value) for value in (0, -1, 1e-320, 1e308, "9", None)),
    *(("metrics.jsonl", "tokens", value) for value in (0, -1, 0.5, DROPPED)),
    *(("samples.jsonl", "step", value) for value in (-1, [], DROPPED)),
    *(("samples.jsonl", key, DROPPED) for key in ("prompt", "text", "temperature", "top_k", "top_p")),
    *(("samples.jsonl", key, "<b>") for key in ("temperature", "top_k", "top_p")),
    *(("result.json", f"final:eval/{split}_loss", value) for split in ("train", "val") for value in (1e308, -1e308)),
    *(("result.json", key, -1) for key in ("flops", "flops_per_token", "parameters", "wall_time", "tokens_per_second")),
    *(("result.json", key, 1e308) for key in ("flops_per_token", "seconds_per_step")),
    ("result.json", "step", 0),
    ("result.json", "best:eval/val_loss:step", -1),
    *(("run.json", f"data:{key}", 1e308) for key in ("unigram_entropy", "ln_vocab", "val_bytes_per_token")),
    *(("run.json", f"data:{key}", 1e-320) for key in ("ln_vocab", "val_bytes_per_token")),
]


@pytest.mark.parametrize(("name", "key", "value"), WRONG)
def test_a_number_that_no_run_records_is_refused_where_it_stands(
    name: str, key: str, value: Any, whole: Path, tmp_path: Path, refusal: Command
) -> None:
    study = shutil.copytree(whole, tmp_path / "study")
    file = study / RUN / name
    number = len(file.read_text().splitlines())
    change(file, key, value, number)
    told = refusal(report, study)
    assert f"{file}:{number}" in told or (file.suffix == ".json" and str(file) in told)
    assert key.rpartition(":")[2] in told or "JSON" in told or "at least one step" in told


@pytest.mark.parametrize(
    ("key", "value"),
    [("train/loss", "3"), ("train/loss", None), ("tokens_per_second", "9"), ("step", "6"), ("wall_time", 1e308)],
)
def test_the_state_of_a_run_is_not_told_from_what_is_no_number(
    key: str, value: Any, whole: Path, tmp_path: Path, refusal: Command
) -> None:
    study = shutil.copytree(whole, tmp_path / "study")
    change(study / RUN / "metrics.jsonl", key, value, 7)
    assert f"{study / RUN / 'metrics.jsonl'} (its last line)" in refusal(status, study)


@pytest.mark.parametrize("order", [reversed, lambda lines: [line for line in lines for _ in range(2)]])
def test_steps_out_of_order_are_refused(order: Any, whole: Path, tmp_path: Path, refusal: Command) -> None:
    study = shutil.copytree(whole, tmp_path / "study")
    file = study / RUN / "metrics.jsonl"
    file.write_text("\n".join(order(file.read_text().splitlines())) + "\n")
    assert f"{file}:2" in refusal(report, study)


def alternate(file: Path) -> None:
    for number in range(2, 8):
        change(file, "train/loss", (-1) ** number * 3e38, number)


def alike(file: Path) -> None:
    for number in range(2, 8):
        change(file, "train/loss", 3.0, number)


def tiny(file: Path) -> None:
    for number in range(2, 8):
        change(file, "train/loss", 1e-320, number)


def far(file: Path) -> None:
    change(file, "step", 2**53, 7)


def one(file: Path) -> None:
    file.write_text(file.read_text().splitlines()[-1] + "\n")


@pytest.mark.parametrize("make", [alternate, alike, tiny, far, one, lambda file: file.write_text(""), Path.unlink])
@pytest.mark.fast_cases(2)
def test_a_curve_that_is_odd_is_drawn_without_a_warning(
    make: Callable[[Path], None],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    study = shutil.copytree(whole, tmp_path / "study")
    make(study / RUN / "metrics.jsonl")
    for command in (status, report):
        monkeypatch.setattr("sys.argv", ["command", str(study)])
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("error", UserWarning)
            command.main()
    assert capfd.readouterr().err == ""
    assert (study / "report.html").is_file()
