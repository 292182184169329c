"""The Python API: what it trains is what the command trains, and it leaves the caller's process as it was."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from small_runs import losses, small_run

import gpt_ablate
from gpt_ablate import UsageError
from gpt_ablate.config.paths import CONF
from gpt_ablate.launching import in_process, launch
from gpt_ablate.reporting import study_figures
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training.callbacks import Callback, RunView, callbacks
from gpt_ablate.utils import signals


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a run of two steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_figures, "plates", lambda *_: [])  # seconds a launch, and tested with the report
    return [
        *small_run(tmp_path),
        "model=micro",
        "trainer.device=cpu",
        "trainer.max_steps=2",
        "sampling.max_new_tokens=3",
    ]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("start", "end", "hardware", "git_commit")}


def test_a_run_from_python_is_the_run_of_the_command(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", *small, "hydra.run.dir=command"])
    with pytest.raises(SystemExit) as stop:
        launch.main()
    assert stop.value.code == 0
    of_command = capfd.readouterr().out
    run = gpt_ablate.train([*small, "hydra.run.dir=python"])
    assert run.path == Path("python").absolute()
    assert run.status == "done"
    command = RunDirectory(Path("command").absolute())
    assert losses(RunDirectory(run.path)) == losses(command)
    assert len(losses(command)) == 2
    here, there = (timeless(json.loads((path / "run.json").read_text())) for path in (run.path, command.path))
    assert here == there
    hydras = [sorted(file.name for file in (path / ".hydra").iterdir()) for path in (run.path, command.path)]
    assert hydras[0] == hydras[1] != []
    told = capfd.readouterr().out
    for line in ("starts", "epoch 1/1", "Records, samples and weights"):
        assert line in told
        assert line in of_command


def test_a_run_is_read_back(small: list[str]) -> None:
    run = gpt_ablate.train(small, quiet=True)
    assert gpt_ablate.load_run(str(run.path)) == run
    assert run.config["model"]["d_model"] == 16
    assert run.metrics.index.name == "step"
    assert list(run.metrics["train/loss"].dropna()) == losses(RunDirectory(run.path))
    assert math.isnan(run.metrics["train/loss"][0])
    assert list(run.samples["prompt"]) == [run.config["sampling"]["prompt"]]
    assert run.result is not None
    model = run.model()
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == run.result["parameters"]
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 50257)
    with pytest.raises(UsageError, match="one of final, best"):
        run.model("newest")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a list of modules"):
        run.model(plugins="mine")


@pytest.mark.slow
def test_several_runs_in_one_process_have_folders_of_their_own(
    small: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [gpt_ablate.train([*small, f"norm={norm}"], quiet=True) for norm in ("pre", "post", "pre")]
    assert len({run.path for run in runs}) == 3
    assert [run.config["norm"]["name"] for run in runs] == ["pre", "post", "pre"]
    assert (
        losses(RunDirectory(runs[0].path)) == losses(RunDirectory(runs[2].path)) != losses(RunDirectory(runs[1].path))
    )
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


def test_a_finished_run_is_returned_as_it_is(small: list[str]) -> None:
    place = [*small, "hydra.run.dir=here"]
    first = gpt_ablate.train(place, quiet=True)
    before = {file: file.stat().st_mtime_ns for file in first.path.rglob("*") if file.name != ".lock"}
    assert gpt_ablate.train(place, quiet=True) == first
    assert {file: file.stat().st_mtime_ns for file in first.path.rglob("*") if file.name != ".lock"} == before
    with pytest.raises(UsageError, match="already holds a run of another config"):
        gpt_ablate.train([*place, "seed=7"], quiet=True)


def test_a_study_from_python(small: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    study = gpt_ablate.train([*small, "norm=pre,post", "seed=0,1", "study=mine"], multirun=True)
    told = capfd.readouterr().out
    assert study.answer.split(". ")[0] in told
    assert study.path == Path("outputs/mine").absolute()
    assert sorted(zip(study.runs["norm"], study.runs["seed"], strict=True)) == [
        (norm, seed) for norm in ("post", "pre") for seed in (0, 1)
    ]
    assert set(study.runs["status"]) == {"done"}
    reported = json.loads((study.path / "report.json").read_text())
    assert study.comparisons.to_dict("records") == reported["comparisons"]
    assert list(study.runs.columns) == (study.path / "results.csv").read_text().splitlines()[0].split(",")
    page = gpt_ablate.load_study("outputs/mine").report("elsewhere")
    assert page == Path("elsewhere/report.html")
    assert page.read_bytes() == (study.path / "report.html").read_bytes()
    recorded = json.loads((study.path / "study.json").read_text())
    assert recorded["overrides"][0] == "--multirun"
    assert "norm=pre,post" in recorded["overrides"]
    capfd.readouterr()
    again = gpt_ablate.train([*small, "norm=pre,post", "seed=0,1", "study=mine"], multirun=True, quiet=True)
    assert again == study
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Make a plugin whose variant `odd` of norm is pre-norm with a constructor that does as it is told."""
    from gpt_ablate.axes.norm import norms

    monkeypatch.setattr(norms, "builders", dict(norms.builders))
    monkeypatch.syspath_prepend(tmp_path)

    def write(statement: str) -> str:
        (tmp_path / "odd_norm.py").write_text(
            "import math, torch\nfrom gpt_ablate.axes.norm import PreNorm, norms\n\n\n"
            "@norms.register('odd')\nclass Odd(PreNorm):\n    def __init__(self, context):\n"
            f"        super().__init__(context)\n        {statement}\n"
        )
        return "odd_norm"

    yield write
    sys.modules.pop("odd_norm", None)


def test_what_makes_a_run_fail_is_raised_and_recorded(
    small: list[str], plugin: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    name = plugin("raise LookupError('no such luck')")
    arguments = [*small, f"plugins=[{name}]", "hydra.run.dir=here"]
    with pytest.raises(LookupError, match="no such luck"):
        gpt_ablate.train([*arguments, "norm.name=odd"], quiet=True)
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")
    assert gpt_ablate.load_run("here").status == "failed"
    assert "no such luck" in json.loads(Path("here/run.json").read_text())["error"]
    study = gpt_ablate.train([*small, f"plugins=[{name}]", "norm.name=odd,pre"], multirun=True, quiet=True)
    assert dict(zip(study.runs["norm"], study.runs["status"], strict=True)) == {"odd": "failed", "pre": "done"}
    assert "no such luck" in capfd.readouterr().err


def test_a_run_that_diverges_is_returned_as_such(small: list[str]) -> None:
    run = gpt_ablate.train([*small, "optimizer.lr=1e30"], quiet=True)
    assert run.status == "diverged"
    assert run.result is not None
    assert run.result["status"] == "diverged"


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a text for a list": ("norm=pre", {}, 'a list such as ["norm=post"'),
    "a dict for a list": ({"norm": "pre"}, {}, 'a list such as ["norm=post"'),
    "a number for an override": ([3], {}, 'text such as "norm=post"'),
    "an unknown option": (["norm=pst"], {}, "one of post, pre. Did you mean 'post'?"),
    "an unknown key": (["optimizer.lrr=1"], {}, "Did you mean 'optimizer.lr'?"),
    "a value out of range": (["seed=-1", "optimizer.lr=-1"], {}, "optimizer.lr"),
    "bad syntax": (["norm=[pre"], {}, "key=value in Hydra's syntax"),
    "a list for one run": (["norm=pre,post"], {}, "norm = 'pre,post': one value; multirun=True"),
    "a range for one run": (["seed=range(3)"], {}, "multirun=True"),
    "a mode for one run": (["hydra.mode=MULTIRUN"], {}, "multirun=True"),
    "a flag": (["--multirun"], {}, "multirun=True"),
    "no such folder": (["norm=pre"], {"config_dir": "nowhere"}, "nowhere"),
    "an unknown option of a sweep": (["norm=pre,pst"], {"multirun": True}, "one of post, pre"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_a_value_error_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides, options, told = REFUSED[case]
    if isinstance(overrides, list) and case != "a number for an override":
        overrides = ["data=sample", "model=micro", *overrides]
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the class below, and its message
        gpt_ablate.train(overrides, **options)
    assert type(refusal.value) is UsageError
    assert told in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_what_is_no_run_or_study_is_refused(small: list[str], tmp_path: Path) -> None:
    run = gpt_ablate.train([*small, "hydra.run.dir=runs/one"], quiet=True)
    for path in ("nowhere", "text.txt", tmp_path):
        with pytest.raises(UsageError, match=r"run\.json|run directory"):
            gpt_ablate.load_run(path)
    with pytest.raises(UsageError, match="below it there is runs/one"):
        gpt_ablate.load_run("runs")
    with pytest.raises(UsageError, match="a folder that holds runs"):
        gpt_ablate.load_study("nowhere")
    (run.path / "run.json").write_text("{")
    for load in (gpt_ablate.load_run, gpt_ablate.load_study):
        with pytest.raises(UsageError, match=r"run\.json"):
            load(run.path)


def test_the_callers_process_is_left_as_it_was(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    before = [sys.argv, sys.stdout, sys.stderr, torch.get_num_threads(), Path.cwd()]
    handlers = {number: signal.getsignal(number) for number in signals.SIGNALS}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        gpt_ablate.train(small, quiet=True)
        with pytest.raises(UsageError):
            gpt_ablate.train(["norm=pst"])
        gpt_ablate.train([*small, "norm=pre,post"], multirun=True, quiet=True)
        assert GlobalHydra.instance().hydra is theirs
        assert OmegaConf.is_config(hydra.compose("config"))
    assert [sys.argv, sys.stdout, sys.stderr, torch.get_num_threads(), Path.cwd()] == before
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == handlers


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    found: list[Any] = [None] * len(calls)

    def note(i: int) -> None:
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=note, args=[i]) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.slow
def test_it_works_in_threads(small: list[str]) -> None:
    calls = [lambda norm=norm: gpt_ablate.train([*small, f"norm={norm}"], quiet=True) for norm in ("pre", "post")]
    runs = in_threads(*calls)
    assert [run.config["norm"]["name"] for run in runs] == ["pre", "post"]
    assert [run.status for run in runs] == ["done", "done"]
    alone = gpt_ablate.train([*small, "norm=post"], quiet=True)
    assert losses(RunDirectory(alone.path)) == losses(RunDirectory(runs[1].path))


class StopAfterStep1(Callback):
    def on_step_end(self, run: RunView) -> None:
        if run.step == 1:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_in_a_thread(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What stopped the first run does not stop the second one, although a thread hears no signals of its own."""
    place = [*small, "hydra.run.dir=here"]
    monkeypatch.setitem(callbacks.builders, "stop", StopAfterStep1)
    with pytest.raises(KeyboardInterrupt, match="after step 1; state saved"):
        gpt_ablate.train([*place, "callbacks=[stop]"], quiet=True)
    assert gpt_ablate.load_run("here").status == "interrupted"
    (run,) = in_threads(lambda: gpt_ablate.train(place, quiet=True))
    assert run.status == "done"
    whole = gpt_ablate.train(small, quiet=True)
    assert losses(RunDirectory(run.path)) == losses(RunDirectory(whole.path))


def test_importing_the_command_leaves_the_function_callable(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gpt_ablate.train", raising=False)
    monkeypatch.delitem(vars(gpt_ablate), "train", raising=False)
    assert gpt_ablate.train is in_process.train
    import gpt_ablate.train as command

    assert isinstance(gpt_ablate.train, ModuleType)
    assert command.main is launch.main
    assert gpt_ablate.train(small, quiet=True).status == "done"
    from gpt_ablate import train

    with pytest.raises(UsageError, match="a list such as"):
        train("norm=pre")


def test_importing_the_package_imports_little() -> None:
    program = (
        "import sys, gpt_ablate; heavy = {'torch', 'hydra', 'pandas', 'numpy', 'pydantic'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "gpt_ablate.load_study; assert not {'torch', 'hydra', 'pandas'} & set(sys.modules); "
        "assert set(gpt_ablate.__all__) <= set(dir(gpt_ablate)); "
        "assert not hasattr(gpt_ablate, 'tarin')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
