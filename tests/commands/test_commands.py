"""The commands as a user types them. Most run in this process: importing torch anew takes seconds."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_runs import small_run

from gpt_ablate import sample
from gpt_ablate.launching import launch
from gpt_ablate.reporting import study_figures
from gpt_ablate.studies.run_directory import RunDirectory

BROKEN = """
from gpt_ablate.axes.norm import PreNorm, norms


@norms.register("broken")
class Broken(PreNorm):
    def __init__(self, context, *, eps: float | None = None):
        raise RuntimeError("no such luck")
"""
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`python -m gpt_ablate.train`, in this process and an own folder: exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(study_figures, "plates", lambda *_: [])  # seconds a launch, and tested with the report
    small = [*small_run(tmp_path), "model=micro", "trainer.device=cpu", "trainer.max_steps=2"]

    def command(*arguments: str) -> tuple[int, str, str]:
        flags = [argument for argument in arguments if argument.startswith("--")]
        keys = [argument for argument in arguments if argument not in flags]
        monkeypatch.setattr("sys.argv", ["train", *flags, *small, "sampling.max_new_tokens=3", *keys])
        with pytest.raises(SystemExit) as stop:
            launch.main()
        told = capfd.readouterr()
        return int(stop.value.code or 0), told.out, told.err

    return command


def records(root: Path) -> dict[Path, tuple[bytes, int]]:
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in root.rglob("*") if file.is_file()}


def test_a_multirun_leaves_whole_records_and_again_changes_none(train: Command, tmp_path: Path) -> None:
    arguments = ("--multirun", "norm=pre,post", "attention=looped", "seed=1")
    code, told, _ = train(*arguments)
    assert code == 0
    for norm in ("pre", "post"):
        directory = RunDirectory(tmp_path / f"outputs/sweep/{norm}-looped/seed_1")
        found = {path.relative_to(directory.path).as_posix() for path in directory.path.rglob("*") if path.is_file()}
        expected = {f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")}
        expected |= {"run.json", "metrics.jsonl", "samples.jsonl", "result.json", ".lock", "checkpoint/tokenizer.json"}
        expected |= {
            f"checkpoint/{kind}/{file}" for kind in ("best", "final") for file in ("model.safetensors", "state.json")
        }
        (events,) = found - expected
        assert events.startswith("events.out.tfevents.")
        assert expected <= found
        assert directory.record()["status"] == directory.result()["status"] == "done"
        assert f"norm={norm}" in (directory.path / ".hydra/overrides.yaml").read_text()
        assert f"{norm}-looped" in told
        assert f"{directory.result()['final']['eval/val_loss']:.4f}" in told
    assert "tensorboard --logdir outputs/sweep" in told
    cells = [tmp_path / f"outputs/sweep/{norm}-looped" for norm in ("pre", "post")]
    before = [records(cell) for cell in cells]  # multirun.yaml beside them is Hydra's note of the last launch
    code, told, _ = train(*arguments)
    assert code == 0
    assert told.count("finished already") == 2
    assert [records(cell) for cell in cells] == before


@pytest.fixture
def broken_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plugin module with a variant of norm whose constructor raises; its file."""
    from gpt_ablate.axes.norm import norms

    module = tmp_path / "broken_norm.py"
    module.write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(norms, "builders", dict(norms.builders))
    yield module
    sys.modules.pop("broken_norm", None)


SWEEP_THAT_FAILS = ("--multirun", "plugins=[broken_norm]", "norm.name=broken,pre")


def statuses(root: Path) -> dict[str, str]:
    found = [json.loads(file.read_text()) for file in root.rglob("run.json")]
    return {run["axes"]["norm"]: run["status"] for run in found}


def test_a_cell_that_fails_leaves_the_others_running(train: Command, tmp_path: Path, broken_norm: Path) -> None:
    code, told, error = train(*SWEEP_THAT_FAILS)
    assert code == 1
    assert "RuntimeError: no such luck" in error
    assert statuses(tmp_path) == {"broken": "failed", "pre": "done"}
    for file in tmp_path.rglob("run.json"):
        record = json.loads(file.read_text())
        assert ("no such luck" in (record["error"] or "")) == (record["status"] == "failed")
    assert (tmp_path / "outputs/sweep/report.md").exists()
    assert "broken/seed_123" in told


def test_a_failure_ends_a_launch_that_asks_for_it(train: Command, tmp_path: Path, broken_norm: Path) -> None:
    code, told, error = train(*SWEEP_THAT_FAILS, "trainer.fail_fast=true")
    assert code == 1
    assert error.count("Traceback") == 1
    assert statuses(tmp_path) == {"broken": "failed"}
    assert "Not started: 1" in told


@pytest.mark.slow
def test_a_failed_run_is_tried_again(train: Command, tmp_path: Path, broken_norm: Path) -> None:
    assert train(*SWEEP_THAT_FAILS)[0] == 1
    mended = BROKEN.replace('raise RuntimeError("no such luck")', "super().__init__(context, eps=eps)")
    broken_norm.write_text(mended)
    from gpt_ablate.axes.norm import norms

    del norms.builders["broken"]
    sys.modules.pop("broken_norm")
    code, told, _ = train(*SWEEP_THAT_FAILS)
    assert code == 0
    assert "broken/seed_123: failed before; starts" in told
    assert "pre/seed_123: finished already" in told
    assert statuses(tmp_path) == {"broken": "done", "pre": "done"}


def test_seeds_added_later_are_the_only_ones_trained(train: Command, tmp_path: Path) -> None:
    assert train("--multirun", "norm=pre,post", "seed=0", "study=s")[0] == 0
    before = records(tmp_path / "outputs/s/pre/seed_0")
    code, told, _ = train("--multirun", "norm=pre,post", "seed=0,1", "study=s")
    assert code == 0
    assert (told.count("finished already"), told.count(": starts")) == (2, 2)
    assert records(tmp_path / "outputs/s/pre/seed_0") == before
    noted = json.loads((tmp_path / "outputs/s/study.json").read_text())
    assert [run["path"] for run in noted["runs"]] == [
        f"{norm}/seed_{seed}" for norm in ("post", "pre") for seed in (0, 1)
    ]
    assert noted["overrides"][0] == "--multirun"
    assert "seed=0,1" in noted["overrides"]
    for run in noted["runs"]:
        recorded = json.loads((tmp_path / "outputs/s" / run["path"] / "run.json").read_text())
        assert (run["fingerprint"], run["seed"]) == (recorded["fingerprint"], recorded["config"]["seed"])
        assert run["levels"] == recorded["axes"]


@pytest.mark.slow
def test_what_a_study_asks_stays_when_a_launch_declares_nothing(train: Command, tmp_path: Path) -> None:
    file = tmp_path / "outputs/s/study.json"
    declared = ("report.question='Which?'", "report.baseline={norm: post}")
    assert train("--multirun", "norm=pre", "study=s", *declared)[0] == 0
    asked = json.loads(file.read_text())["report"]
    assert (asked["question"], asked["baseline"]) == ("Which?", {"norm": "post"})
    assert train("--multirun", "norm=post", "study=s")[0] == 0
    assert json.loads(file.read_text())["report"] == asked
    assert train("--multirun", "norm=post", "study=s", "report.question='What?'")[0] == 0
    assert json.loads(file.read_text())["report"]["question"] == "What?"


@pytest.mark.slow
def test_seeds_of_another_recipe_do_not_join_a_study(train: Command, tmp_path: Path) -> None:
    assert train("--multirun", "norm=pre", "seed=0", "study=s")[0] == 0
    before = records(tmp_path)
    code, told, error = train("--multirun", "norm=pre,post", "seed=1", "study=s", "optimizer.lr=1e-3")
    assert (code, told) == (2, "")
    assert "optimizer.lr = '0.0004 in default/seed_0, 0.001 in pre/seed_1'" in error
    assert records(tmp_path) == before
    assert train("--multirun", "norm=pre", "seed=0", "study=s", "optimizer.lr=2e-3,1e-3")[0] == 0


HOLD = """
import sys, time
from pathlib import Path
from gpt_ablate.studies.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_that_another_process_trains_is_refused(train: Command, tmp_path: Path) -> None:
    assert train("hydra.run.dir=here")[0] == 0
    (tmp_path / "here/result.json").unlink()
    before = records(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "here")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        code, told, error = train("hydra.run.dir=here")
        assert (code, told) == (2, "")
        assert "no other process is training" in error
        assert records(tmp_path) == before
    finally:
        holder.kill()
        holder.wait()
    assert train("hydra.run.dir=here")[0] == 0  # killed, it left no lock behind


def test_another_config_in_the_place_of_a_run_is_refused(train: Command, tmp_path: Path) -> None:
    assert train("hydra.run.dir=here")[0] == 0
    before = records(tmp_path)
    code, told, error = train("hydra.run.dir=here", "optimizer.lr=1e-3")
    assert (code, told) == (2, "")
    assert "optimizer.lr: 0.0004 there, 0.001 here" in error
    assert records(tmp_path) == before


def test_restart_records_the_config_it_ran(train: Command, tmp_path: Path) -> None:
    assert train("hydra.run.dir=here")[0] == 0
    assert train("hydra.run.dir=here", "optimizer.lr=1e-3", "trainer.resume=restart")[0] == 0
    assert RunDirectory(tmp_path / "here").record()["config"]["optimizer"]["lr"] == 1e-3
    assert "optimizer.lr=1e-3" in (tmp_path / "here/.hydra/overrides.yaml").read_text()


def test_sample_prints_prompt_and_text(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train("hydra.run.dir=here", "model.context_length=8")[0] == 0

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sample", *arguments])
        code = 0
        try:
            sample.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capfd.readouterr()
        return code, told.out, told.err

    prompt = "a = 'b', ${c} [d]"
    first = command("here", "--prompt", prompt, "--max-new-tokens", "5", "--num-samples", "2")
    assert first[0] == 0
    assert first[1].startswith(prompt)
    assert first[1].count(prompt) == 2
    assert "left out" in first[2]
    assert command("here", "--prompt", prompt, "--max-new-tokens", "5", "--num-samples", "2") == first
    assert command("here", "--seed", "1")[1] != command("here")[1]
    greedy = [command("here", "--temperature", "0", "--seed", seed)[1] for seed in "01"]
    assert greedy[0] == greedy[1]
    assert greedy[0].startswith("Every effort moves you")
    for bad, key in (
        (("here", "--temperature", "-1"), "--temperature"),
        (("here", "--top-p", "2"), "--top-p"),
        (("here", "--top-k", "0"), "--top-k"),
        (("here", "--prompt", ""), "--prompt"),
        (("here", "--num-samples", "0"), "--num-samples"),
        (("here", "--max-new-tokens", "few"), "--max-new-tokens"),
        (("nowhere",), "nowhere"),
        ((str(tmp_path),), "here"),
    ):
        code, told, error = command(*bad)
        assert (code, told) == (2, ""), bad
        assert key in error
        assert "Traceback" not in error


def test_help_and_cfg_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "for flags in (['--help'], ['norm=post', '--cfg', 'job']):\n"
        "    sys.argv[1:] = flags\n"
        "    try:\n"
        "        runpy.run_module('gpt_ablate.train', run_name='__main__', alter_sys=True)\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for group in (
        "attention: looped, parallel, sdpa",
        "layers: clone, fresh",
        "norm: post, pre",
        "schedule: constant, cosine, warmup",
    ):
        assert group in done.stdout
    assert "name: post" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_saves_and_the_command_it_prints_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-m", "gpt_ablate.train", *small_run(tmp_path), "model=micro", "trainer.device=cpu"]
    arguments += ["trainer.max_epochs=4", "trainer.sample_every=0", "trainer.eval_every=0", "study=a b"]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while not any(len(file.read_bytes().splitlines()) > 3 for file in tmp_path.rglob("metrics.jsonl")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, error = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "Traceback" not in error
    (run,) = tmp_path.glob("outputs/a b/*")
    directory = RunDirectory(run)
    assert not directory.finished()
    steps = directory.metrics()[-1]["step"]
    command = shlex.split(error.partition("To go on: ")[2])
    assert command[:3] == ["python", "-m", "gpt_ablate.train"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", command[2:])
    with pytest.raises(SystemExit) as stop:
        launch.main()
    assert not stop.value.code
    assert f"goes on after step {steps}" in capfd.readouterr().out
    assert [line["step"] for line in directory.metrics()] == list(range(25))
    assert directory.result()["status"] == "done"
