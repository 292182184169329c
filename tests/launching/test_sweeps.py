"""In a sweep, a parameter goes to the options that take it: to those alone, and checked as ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_commands import Command, train  # noqa: F401
from test_launch import TINY, folders, plan  # noqa: F401

from gpt_ablate.launching.planning import Plan
from gpt_ablate.utils.errors import UsageError

EXPERIMENT = """# @package _global_
hydra:
  sweeper:
    params:
      schedule: constant,warmup,cosine
      schedule.warmup_steps: 2,4
      schedule.final_fraction: 0.5
"""
WARMUP = "outputs/sweep/schedule_"


def of_runs(made: Plan) -> list[dict[str, object]]:
    return [run.config.schedule.node() for run in made.runs]


@pytest.mark.parametrize("prefix", ["", "+", pytest.param("++", marks=pytest.mark.slow)])
def test_a_parameter_goes_to_the_options_that_take_it(prefix: str, plan: Callable[..., Plan]) -> None:  # noqa: F811
    made = plan("--multirun", *TINY, "schedule=constant,warmup", f"{prefix}schedule.warmup_steps=2")
    assert of_runs(made) == [{"name": "constant"}, {"name": "warmup", "warmup_steps": 2}]
    assert folders(made) == [f"{WARMUP}constant/seed_123", f"{WARMUP}warmup/seed_123"]
    assert [any("warmup_steps" in override for override in run.overrides) for run in made.runs] == [False, True]
    assert made.notes == ["schedule.warmup_steps: set for schedule=warmup; schedule=constant take no such parameter"]
    alone = plan("--multirun", *TINY, "schedule=constant,warmup")
    assert alone.runs[0].fingerprint == made.runs[0].fingerprint
    (single,) = plan(*TINY, "schedule=warmup", "schedule.warmup_steps=2").runs
    assert single.fingerprint == made.runs[1].fingerprint


@pytest.mark.slow
def test_an_option_without_a_swept_parameter_is_one_cell(
    plan: Callable[..., Plan],  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/three.yaml").write_text(EXPERIMENT)
    made = plan("--config-dir", str(tmp_path), "--multirun", "experiment=three", *TINY, "seed=0,1")
    expected: list[dict[str, object]] = [{"name": "constant"}]
    expected += [{"name": "warmup", "warmup_steps": steps} for steps in (2, 4)]
    expected += [{"name": "cosine", "warmup_steps": steps, "final_fraction": 0.5} for steps in (2, 4)]
    assert of_runs(made) == [each for each in expected for _ in range(2)]
    steps = "-schedule.warmup_steps_"
    assert folders(made)[::2] == [
        f"{WARMUP}constant{steps}None/seed_0",
        *(f"{WARMUP}{name}{steps}{n}/seed_0" for name in ("warmup", "cosine") for n in (2, 4)),
    ]
    made = plan("--config-dir", str(tmp_path), "--multirun", "experiment=three", *TINY, "schedule.warmup_steps=9")
    assert {node.get("warmup_steps") for node in of_runs(made)} == {None, 9}


def test_an_override_that_adds_a_key_to_the_launcher_reaches_every_job(plan: Callable[..., Plan]) -> None:  # noqa: F811
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    begin = "+hydra.launcher.additional_parameters.begin=now+1hour"
    made = plan("--multirun", *TINY, "seed=0,1", "hydra/launcher=submitit_slurm", begin)
    assert folders(made) == [f"outputs/sweep/default/seed_{seed}" for seed in (0, 1)]


@pytest.mark.parametrize(
    ("sweep", "key", "values"),
    [
        ("init=torch,gpt2 init.std=0.1", "init", [None, 0.1]),
        ("data=sample,verdict data.dir={verdict}", "data", [None, "{verdict}"]),
        ("norm=pre norm.name=pre,post +norm.eps=1e-6", "norm", [1e-6, 1e-6]),
    ],
)
@pytest.mark.fast_cases(1)
def test_it_is_so_for_every_group(
    sweep: str,
    key: str,
    values: list[object],
    plan: Callable[..., Plan],  # noqa: F811
    verdict: Path,
) -> None:
    told = sweep.format(verdict=verdict.parent)
    made = plan("--multirun", *TINY, "model.context_length=16", "data.batch_size=2", *told.split(" "))
    parameter = {"init": "std", "data": "dir", "norm": "eps"}[key]
    found = [run.config.record()[key].get(parameter) for run in made.runs]
    assert found == [
        str(value).format(verdict=verdict.parent) if key == "data" and value else value for value in values
    ]
    if key == "norm":
        assert made.notes == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--multirun", "schedule=constant,warmup", "schedule.warmup_stepz=2"],
            r"schedule.warmup_stepz = '2': none of schedule=constant, schedule=warmup takes .* 'schedule.warmup_steps'",
        ),
        (
            ["--multirun", "schedule=constant,warmup", "+schedule.final_fraction=0.5"],
            r"schedule.final_fraction = '0.5': none of .* \(schedule=cosine would\)",
        ),
        (
            ["--multirun", "schedule=constant,warmup", "schedule.warmup_steps=2,two"],
            r"^schedule.warmup_steps = 'two': should be a valid integer.$",
        ),
        (["+schedule.warmup_steps=2"], r"constant takes no such parameter \(accepted: none; .*schedule=warmup\)"),
        (["--multirun", "init=torch,gpt2", "init.std=-1"], r"^init.std = -1: should be greater than 0.$"),
    ],
)
@pytest.mark.fast_cases(2)
def test_what_no_option_takes_or_is_wrong_for_one_is_refused(
    arguments: list[str],
    told: str,
    plan: Callable[..., Plan],  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=told):
        plan(*arguments[:1], *TINY, *arguments[1:])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_study_of_options_with_parameters_of_their_own_is_trained_reported_and_gone_on_with(
    train: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    sweep = ("--multirun", "schedule=constant,warmup", "schedule.warmup_steps=1,2", "study=s")
    code, told, error = train(*sweep)
    assert code == 0, error
    assert "schedule.warmup_steps: set for schedule=warmup" in told
    report = json.loads((tmp_path / "outputs/s/report.json").read_text())
    assert report["factors"] == {"schedule": ["constant", "warmup"], "schedule.warmup_steps": ["None", "1", "2"]}
    code, told, error = train(*sweep)
    assert code == 0, error
    assert told.count("finished already") == 3
    noted = json.loads((tmp_path / "outputs/s/study.json").read_text())
    assert "schedule.warmup_steps=1,2" in noted["overrides"]
    assert len(noted["runs"]) == 3
